"""Writes goldens/pth/*.pth with torch; `expected` is what they hold.

python tests/write_pth_fixtures.py
"""

import argparse
import collections
from pathlib import Path

import ml_dtypes
import numpy as np

FIXTURES = Path(__file__).parent / "goldens" / "pth"
DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def expected():
    """Returns the tensors of every fixture, as numpy arrays."""
    base = np.arange(-12, 12).reshape(2, 3, 4)
    arrays = {dtype: base.astype(dtype) for dtype in DTYPES}
    arrays["bfloat16"] = (base / 7).astype(ml_dtypes.bfloat16)
    arrays["special"] = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45], np.float32)
    arrays["scalar"] = np.float32(2.5).reshape(())
    arrays["empty"] = np.zeros((0, 3), np.float32)
    arrays["transposed"] = base.astype(np.float32).transpose(2, 0, 1)
    arrays["sliced"] = base.astype(np.float32)[:, 1:, ::2]
    arrays["expanded"] = np.broadcast_to(np.float32([[1], [2]]), (2, 5))
    arrays["parameter"] = base.astype(np.float32)[0]
    return arrays


def checkpoint():
    """Returns the same as a torch checkpoint, with what training scripts put beside it."""
    import torch

    base = torch.arange(-12, 12).reshape(2, 3, 4)
    model = collections.OrderedDict((dtype, base.to(getattr(torch, dtype))) for dtype in DTYPES)
    model["bfloat16"] = (base.double() / 7).to(torch.bfloat16)
    model["special"] = torch.tensor([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45])
    model["scalar"] = torch.tensor(2.5)
    model["empty"] = torch.zeros(0, 3)
    model["transposed"] = base.float().permute(2, 0, 1)
    model["sliced"] = base.float()[:, 1:, ::2]
    model["expanded"] = torch.tensor([[1.0], [2.0]]).expand(2, 5)
    model["parameter"] = torch.nn.Parameter(base.float()[0])
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    args = argparse.Namespace(lr=0.1, path=Path("runs"))
    return {
        "model": model, "optimizer": optimizer.state_dict(), "args": args, "epoch": 3,
        "best": np.float64(0.5), "when": np.arange(3),
    }  # fmt: skip


def main():
    import torch

    FIXTURES.mkdir(exist_ok=True)
    torch.save(checkpoint(), FIXTURES / "zip.pth")
    torch.save(checkpoint(), FIXTURES / "legacy.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
