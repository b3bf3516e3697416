"""Peak FLOP rates of chips, for the model FLOP utilisation (MFU).

PaLM (arXiv:2204.02311, appendix B) defines MFU: the model's own multiply-adds, twice, over what the
chip does in that time; what is recomputed does not count.
"""

from __future__ import annotations

# Part of a device's name, in lower case -> 10¹² dense bfloat16 FLOP/s; the first that matches.
# NVIDIA: the chips' data sheets, without sparsity. TPU: a chip's, by the versions' pages under
# docs.cloud.google.com/tpu/docs; the devices of v2 and v3 are half a chip.
PEAKS = {
    "h200": 989.0,
    "h100 pcie": 756.0,
    "h100": 989.0,
    "a100": 312.0,
    "a10g": 70.0,
    "l40s": 362.0,
    "l4": 121.0,
    "rtx 4090": 165.2,
    "rtx 3090": 71.0,
    "tpu v6": 918.0,
    "tpu v5p": 459.0,
    "tpu v5 lite": 197.0,
    "tpu v5": 459.0,
    "tpu v4 lite": 138.0,
    "tpu v4": 275.0,
    "tpu v3": 61.5,
    "tpu v2": 22.5,
}


def peak_flops(device: str, dtype: str) -> float | None:
    """Returns a device's bfloat16 FLOP/s, by JAX's name for it; None for others and for float32."""
    if dtype != "bfloat16":
        return None
    name = device.lower()
    return next((1e12 * peak for part, peak in PEAKS.items() if part in name), None)
