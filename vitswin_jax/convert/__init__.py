"""Weights files: reading and writing them, and the rules between their formats and ours."""
