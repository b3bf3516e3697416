"""The cores that this process may use."""

from __future__ import annotations


def cores() -> int:
    """Returns how many cores this process may use: its affinity's, or a container's share."""
    import joblib  # here, for it takes 0.2 s and most commands ask for no cores

    return joblib.cpu_count()
