"""Writes weights/dino.npz: positions as interpolate_pos_encoding of DINO, iBOT and DINOv2 has them.

python tests/goldens/write_dino.py    (with torch)
"""

from pathlib import Path

import numpy as np
import torch

SIZES = ((14, 24), (37, 16))  # sides of the patch grid: before, after


def main():
    arrays = {}
    for old, new in SIZES:
        table = np.random.default_rng(old).normal(size=(1, 1 + old * old, 4)).astype(np.float32)
        grid = torch.tensor(table[:, 1:]).reshape(1, old, old, 4).permute(0, 3, 1, 2)
        scale = (new + 0.1) / old
        grid = torch.nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
        rows = grid.permute(0, 2, 3, 1).reshape(1, new * new, 4).numpy()
        name = f"dino_{old}x{old}_to_{new}x{new}"
        arrays |= {f"{name}/in": table, f"{name}/out": np.concatenate([table[:, :1], rows], 1)}
    np.savez_compressed(Path(__file__).parent / "weights" / "dino.npz", **arrays)


if __name__ == "__main__":
    main()
