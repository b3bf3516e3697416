"""Outcomes of finished runs, as the command line prints them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """Outcome of a finished run with labels."""

    name: str
    test_accuracy: float  # fraction in [0, 1]
    test_images: int
    weights: Path
    report: Path

    def __str__(self) -> str:
        accuracy = f"{self.name}  test accuracy {100 * self.test_accuracy:.1f} %"
        return f"{accuracy} ({self.test_images} images)  report: {self.report}"


@dataclass(frozen=True)
class PretrainingResult:
    """Outcome of a finished run without labels."""

    name: str
    method: str
    test_loss: float
    test_images: int
    weights: Path
    report: Path

    def __str__(self) -> str:
        loss = f"{self.name}  {self.method}  test loss {self.test_loss:.4f}"
        return f"{loss} ({self.test_images} images)  report: {self.report}"
