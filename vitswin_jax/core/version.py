"""Holds the version: read by the build without importing JAX, and by checkpoints' metadata."""

__version__ = "0.1.0"
