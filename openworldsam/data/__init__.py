"""Datasets, their records, training batches and the feature cache."""
