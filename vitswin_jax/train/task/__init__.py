"""Losses, and changes to a batch inside the training step."""
