"""Modules without JAX: types, errors, atomic writes, caches, the heap, the version."""
