"""Datasets, one kind per file: records of an encoded image and its label."""
