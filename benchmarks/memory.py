"""What a training step keeps in memory; what scan, rematerialisation and accumulation save of it.

python benchmarks/memory.py [what `vitswin benchmark` takes]

The columns are "MB", the peak of the process or of the accelerator, and "temporary", what XLA plans
besides the state and the batch.
"""

from __future__ import annotations

import sys

from vitswin_jax.cli import main

OPTIONS = ["--task", "train", "--rounds", "1", "--model", "vit_small_patch16_224"]
VARIANTS = ("scan=True", "scan=True,remat=full", "scan=True,remat=dots", "accum_steps=2")

if __name__ == "__main__":
    variants = [f"--variant={variant}" for variant in VARIANTS]
    sys.exit(main(["benchmark", *OPTIONS, *variants, *sys.argv[1:]]))
