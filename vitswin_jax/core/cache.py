"""The cache directory of downloads, prepared data and compiled programs; any room may use it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

COMPILED = "compiled"
JAX_DECIDES = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")


def cache_dir() -> Path:
    """Returns the cache directory: `VITSWIN_CACHE`, or `vitswin_jax` in the user's own cache."""
    if own := os.environ.get("VITSWIN_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vitswin_jax"


def keep_compiled_programs() -> None:
    """Has JAX keep what takes it a second or more to compile, for this process's successors.

    Whoever sets one of JAX's own variables, `JAX_DECIDES`, decides alone: on another folder, or
    with JAX_ENABLE_COMPILATION_CACHE=false on none. A folder that cannot be made is no cache.
    """
    if any(name in os.environ for name in JAX_DECIDES):
        return
    folder = cache_dir() / COMPILED
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    os.environ[JAX_DECIDES[0]] = str(folder)  # children's too; a JAX not imported yet reads it
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_compilation_cache_dir", str(folder))
