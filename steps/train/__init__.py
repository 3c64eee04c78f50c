"""Training: the program that every rank runs, and the stage's door (`stage`)."""
