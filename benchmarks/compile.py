"""How long a training step of ViT-B/16 takes until it has run once: compilation and the call.

python benchmarks/compile.py [what `vitswin benchmark` takes]

The column is "first, s". The scanned variant compiles one block for all.
"""

from __future__ import annotations

import sys

from vitswin_jax.cli import main

OPTIONS = ["--model", "vit_base_patch16_224", "--task", "train", "--rounds", "1"]

if __name__ == "__main__":
    sys.exit(main(["benchmark", *OPTIONS, "--variant", "scan=True", *sys.argv[1:]]))
