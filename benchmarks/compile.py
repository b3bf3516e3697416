"""Time until a training step of ViT-B/16 has run once: compilation and the first call.

python benchmarks/compile.py [--smoke] [what `vitswin benchmark` takes]

The column is "first, s". The scanned variant compiles one block for all.
"""

from __future__ import annotations

import sys

from suites import run

OPTIONS = ["--model", "vit_base_patch16_224", "--task", "train", "--rounds", "1"]
SUITES = {"all": [[*OPTIONS, "--variant", "scan=True"]]}

if __name__ == "__main__":
    sys.exit(run(SUITES, smoke=["--variant=scan=True"]))
