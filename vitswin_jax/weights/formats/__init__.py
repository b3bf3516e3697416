"""Bytes of a file -> named tensors, and back."""
