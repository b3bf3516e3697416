"""Kinds of 8-bit files, by their names in `vitswin export --quantize`.

`WEIGHTS` stores matrices as codes and computes in float32 (`quantize`). A kind of `CALIBRATED`
also multiplies codes, with ranges of activations from calibration images (`calibrated`).
"""

from __future__ import annotations

from typing import NamedTuple


class Activations(NamedTuple):
    """Codes of the inputs of products. Weights always have symmetric int8 codes."""

    symmetric: bool
    """int8 with a zero point of 0; else uint8 with a zero point."""
    described: str
    """Phrase on the file for its metadata and for the terminal."""


_PRODUCTS = "int8 products, one scale for each output channel and for each product's input"

WEIGHTS = "int8"
CALIBRATED = {
    "int8-qdq": Activations(False, _PRODUCTS),
    "int8-qdq-symmetric": Activations(True, f"{_PRODUCTS}, all zero points 0"),
}
KINDS = (WEIGHTS, *CALIBRATED)
