"""An image that starts a program in Pillow, and the program that it would start."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import EpsImagePlugin


@pytest.fixture
def eps() -> bytes:
    """An Encapsulated PostScript file, 8x6."""
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> Path:
    """A `gs`, first on PATH, that writes each of its starts to the file that is returned."""
    starts = tmp_path / "starts.txt"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {starts}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow keeps what it once found
    return starts
