"""`python -m demo`: from a bare machine to a tuned model behind a 10, 50, 100 % split, as its users see it."""
