"""Loading a model, finding its matrices, and putting factored ones into it."""
