"""Cost against image size: Swin's grows with the pixels, a ViT's with their square.

python benchmarks/scaling.py [--smoke] [what `vitswin benchmark` takes]

The column is "ns/pixel": flat for Swin, Swin's section 3.2 says. Sizes are multiples of its window.
"""

from __future__ import annotations

import sys

from suites import run

OPTIONS = ["--batch-size", "1", "--img-size", "224", "448", "672", "896"]
MODELS = ("swin_tiny_patch4_window7_224", "vit_small_patch16_224")
SUITES = {"all": [[*OPTIONS, "--model", *MODELS]]}

if __name__ == "__main__":
    sys.exit(run(SUITES))
