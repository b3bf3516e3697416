"""Inference and training steps of every family, beside the peers at hand.

python benchmarks/throughput.py [--smoke] [what `vitswin benchmark` takes]

A suite at a time: --suite inference|batch-1|large|train|dtypes (default: all of them).
"""

from __future__ import annotations

import sys

from suites import run

VIT = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224")
SWIN = ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256")
SUITES = {
    "inference": [["--model", *VIT, *SWIN, "--products"]],
    "batch-1": [["--model", *VIT, *SWIN, "--batch-size", "1"]],
    "large": [["--model", "vit_small_patch16_224", "--img-size", "448", "--batch-size", "1", "8"]],
    "train": [["--task", "train", "--model", "vit_small_patch16_224", *SWIN]],
    "dtypes": [["--dtype", "float32", "bfloat16", "--model", "vit_small_patch16_224", SWIN[0]]],
}

if __name__ == "__main__":
    sys.exit(run(SUITES, smoke=["--products"]))
