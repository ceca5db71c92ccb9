"""Scores a model on the sealed test split: answers, metrics, intervals, and the pairing with a reference."""
