"""Writes goldens/models/timm_swin.npz: small Swins of timm, their weights and what they give.

python tests/goldens/write_timm_swin.py

Made with timm 1.0.31 and torch 2.14.1. A key is "case/images", "case/logits", or "case/weights/"
and the name of a parameter. Windows that are no squares, and sizes that windows do not divide.
"""

from pathlib import Path

import numpy as np
import torch
from timm.models.swin_transformer import SwinTransformer

SIZES = {"patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 3}
CASES = {  # case -> arguments
    "oblong": {"img_size": (28, 14), "window_size": 7},
    "window_pair": {"img_size": 16, "window_size": (2, 4)},
    "window_pair_oblong": {"img_size": (20, 12), "window_size": (4, 2)},
    "always_partition": {"img_size": 16, "window_size": 3, "always_partition": True},
}


def main():
    goldens, rng = {}, np.random.default_rng(0)
    for case, arguments in CASES.items():
        model = SwinTransformer(**SIZES, **arguments).eval().double()
        state = {
            name: torch.from_numpy(rng.normal(0, 0.3, tensor.shape).astype(np.float16)).double()
            for name, tensor in model.state_dict().items()
        }
        model.load_state_dict(state)
        size = arguments["img_size"]
        height, width = (size, size) if isinstance(size, int) else size
        images = rng.normal(0, 1, (2, height, width, 3)).astype(np.float32)
        with torch.no_grad():
            logits = model(torch.from_numpy(images).permute(0, 3, 1, 2).double())
        goldens[f"{case}/images"], goldens[f"{case}/logits"] = images, logits.numpy()
        for name, array in state.items():
            goldens[f"{case}/weights/{name}"] = array.numpy().astype(np.float16)
    np.savez_compressed(Path(__file__).parent / "models" / "timm_swin.npz", **goldens)


if __name__ == "__main__":
    main()
