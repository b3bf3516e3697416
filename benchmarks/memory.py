"""Memory of a training step, and the savings by scan, rematerialisation and accumulation.

python benchmarks/memory.py [--smoke] [what `vitswin benchmark` takes]

The columns are "MB", the peak of the process or of the accelerator, and "temporary", what XLA plans
besides the state and the batch.
"""

from __future__ import annotations

import sys

from suites import run

OPTIONS = ["--task", "train", "--rounds", "1", "--model", "vit_small_patch16_224"]
VARIANTS = ("scan=True", "scan=True,remat=full", "scan=True,remat=dots", "accum_steps=2")
SUITES = {"all": [[*OPTIONS, *(f"--variant={variant}" for variant in VARIANTS)]]}

if __name__ == "__main__":
    sys.exit(run(SUITES, smoke=["--variant=scan=True"]))
