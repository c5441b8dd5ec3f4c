"""Commands that print the project's figures: a table, then one JSON line, kept in benchmarks/results/."""
