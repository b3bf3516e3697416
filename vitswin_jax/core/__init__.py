"""What needs no JAX: types, errors, atomic writes, caches, the heap, the version."""
