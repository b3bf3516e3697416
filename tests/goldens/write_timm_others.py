"""Writes goldens/models/timm_others.json.gz: tensors of timm's architectures that are not here.

python tests/goldens/write_timm_others.py

Made with timm 1.0.31 and torch 2.14.1: for each architecture that vitswin_jax has no variant of,
the names and shapes of the tensors, of the blocks only the first two of each stage. Architectures
with the same tensors (other sizes of the image) are there once.
"""

import gzip
import json
import re
from pathlib import Path

import timm
import torch

MODULES = [
    "vision_transformer", "deit", "vision_transformer_hybrid", "swin_transformer",
    "swin_transformer_v2", "beit", "eva", "vision_transformer_relpos", "vision_transformer_sam",
    "swin_transformer_v2_cr", "naflexvit", "cait", "vitamin", "hiera", "mvitv2", "davit",
]  # fmt: skip
HERE = Path(__file__).parent / "models"
LATER = re.compile(r"(^|\.)blocks\.([2-9]|\d\d)\.|(^|\.)blocks\.\d+\.blocks\.([2-9]|\d\d)\.")


def main():
    have = set(json.loads((HERE / "timm_variants.json").read_text())["models"])
    found, seen = {}, set()
    for module in MODULES:
        for name in timm.list_models(module=module):
            if name in have:
                continue
            with torch.device("meta"):
                model = timm.create_model(name)
            shapes = {
                key: list(tensor.shape)
                for key, tensor in model.state_dict().items()
                if not LATER.search(key)
            }
            kind = json.dumps(sorted(shapes))
            if kind not in seen:
                seen.add(kind)
                found[name] = shapes
    text = json.dumps(found, separators=(",", ":"), sort_keys=True).encode()
    (HERE / "timm_others.json.gz").write_bytes(gzip.compress(text, mtime=0))
    print(len(found))


if __name__ == "__main__":
    main()
