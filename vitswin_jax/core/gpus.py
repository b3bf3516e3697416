"""The share of a GPU's memory that a process takes."""

from __future__ import annotations

import os

JAX_DECIDES = (
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
)
"""Variables by which a user says how JAX takes memory."""


def take_memory_as_needed() -> None:
    """Has JAX take a GPU's memory bit by bit, and not three quarters of it at the start.

    Must come before JAX has looked for devices. Whoever sets one of `JAX_DECIDES` decides alone.
    """
    if not any(name in os.environ for name in JAX_DECIDES):
        os.environ[JAX_DECIDES[0]] = "false"
