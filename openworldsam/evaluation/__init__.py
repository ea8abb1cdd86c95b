"""Evaluation: what a model or saved predictions score on a benchmark."""
