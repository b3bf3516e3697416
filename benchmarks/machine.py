"""The processor and the commit that a measurement is of, for other scripts."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def facts() -> dict[str, str]:
    """Returns the facts that Linux states of a processor, by its names; none on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def processor() -> str:
    """Returns the name of the processor."""
    return facts().get("model name") or platform.processor() or platform.machine()


def commit() -> str:
    """Returns the first digits of the checkout's commit, or "unknown"."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
