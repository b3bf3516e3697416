"""Where downloads and prepared data are kept; any room may use this."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Returns the cache directory: `VITSWIN_CACHE`, or `vitswin_jax` in the user's own cache."""
    if own := os.environ.get("VITSWIN_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vitswin_jax"
