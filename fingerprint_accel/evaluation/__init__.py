"""Evaluate a model on a dataset and write the report."""
