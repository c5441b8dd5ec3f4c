"""Examples of a task and the scores on them; numpy only."""
