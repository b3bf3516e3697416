"""On a GPU: ViT and Swin in bfloat16, with each kernel for attention, beside timm.

python benchmarks/gpu.py [--smoke] [what `vitswin benchmark` takes]

A suite at a time: --suite vit|swin (default: both). The rows of "ours" are XLA's attention; the
ratio beside a variant is what its kernel gains over that, in time, "MB" and "temporary" what it
saves. MFU is of the chip's bfloat16 peak.
"""

from __future__ import annotations

import subprocess
import sys

from suites import run

COMMON = ["--dtype", "bfloat16", "--peer", "timm", "--peer", "timm-compiled"]
CUDNN, FUSED = ["--variant", "attn_impl=cudnn"], ["--variant", "attn_impl=fused"]
SWIN = (
    "swin_tiny_patch4_window7_224",
    "swin_base_patch4_window7_224",
    "swinv2_base_window8_256",
)
TASKS = ["--task", "inference", "train", "--batch-size", "64"]
LARGE = ["--model", "vit_large_patch16_224"]
SUITES = {
    "vit": [
        [*COMMON, "--model", "vit_base_patch16_224", *TASKS, *CUDNN],
        # Four contestants share the memory, and half of this batch fills what one of them has.
        [*COMMON, *LARGE, "--batch-size", "64", *CUDNN],
        [*COMMON, *LARGE, "--task", "train", "--batch-size", "32", *CUDNN],
    ],
    "swin": [[*COMMON, "--model", *SWIN, *TASKS, *FUSED]],
}

if __name__ == "__main__":
    # Asked in a process of its own: this one leaves the GPU's memory to the contestants.
    found = subprocess.run(
        [sys.executable, "-c", "import jax; print(jax.default_backend())"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    if found != "gpu":
        sys.exit(f"benchmarks/gpu.py needs a GPU, and JAX finds none here, but {found}.")
    sys.exit(run(SUITES))
