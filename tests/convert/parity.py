"""Stand-ins for published checkpoints: their keys and shapes, with numbers that depend on both.

The originals' outputs for exactly these numbers are in goldens/forward.npz.
"""

import gzip
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import safetensors.numpy

from vitswin_jax.convert.pth_write import write_pth

GOLDENS = Path(__file__).parent / "goldens"
CASES = json.loads(gzip.decompress((GOLDENS / "forward.json.gz").read_bytes()))


def expected(case_id):
    """Returns what the original gave: logits and features."""
    with np.load(GOLDENS / "forward.npz") as arrays:
        return {kind: arrays[f"{case_id}/{kind}"] for kind in ("logits", "features")}


def make_array(key, shape, dtype="float32"):
    """Returns the array that stands under a key; the same key and shape, the same numbers."""
    digest = hashlib.sha256(f"0:{key}".encode()).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    x, low = rng.standard_normal(tuple(shape)), key.lower()
    if "logit_scale" in low:
        x = math.log(10.0) + x
    elif "relative_position_bias_table" in low:
        x = 0.5 * x
    elif any(word in low for word in ("pos_embed", "position_embeddings", "posembed")):
        x = 0.2 * x
    elif ("cls" in low.split("/")[-1] or "token" in low) and "classifier" not in low:
        x = 0.5 * x
    elif any(word in low for word in ("gamma", "lambda", "layer_scale")):
        x = 0.5 + 0.1 * x
    elif low.endswith("scale") or ("norm" in low and low.endswith("weight")):
        x = 1.0 + 0.1 * x
    elif len(shape) <= 1 or low.endswith("bias"):
        x = 0.1 * x
    else:
        x = x / math.sqrt(_fan_in(key, shape))
    return x.astype(dtype)


def _fan_in(key, shape):
    if not key.endswith("kernel"):
        return math.prod(shape[1:])
    if key.split("/")[-2] in ("query", "key", "value"):
        return shape[0]
    return math.prod(shape[:-1])


def make_images(seed, batch, height, width):
    """Returns float32 images (batch, height, width, 3), smooth and roughly in [-1, 1]."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    coarse = rng.standard_normal((batch, 8, 8, 3))
    ys, xs = np.linspace(0, 7, height), np.linspace(0, 7, width)
    y0, x0 = np.minimum(ys.astype(int), 6), np.minimum(xs.astype(int), 6)
    fy, fx = (ys - y0)[None, :, None, None], (xs - x0)[None, None, :, None]
    rows = coarse[:, y0] * (1 - fy) + coarse[:, y0 + 1] * fy
    image = rows[:, :, x0] * (1 - fx) + rows[:, :, x0 + 1] * fx
    image = image + 0.3 * rng.standard_normal(image.shape)
    return np.clip(0.5 * image, -1, 1).astype(np.float32)


def make_state(entries):
    """Returns a state dict; buffers are zeros, for loaders have to compute them."""
    return {
        key: np.zeros(entry["shape"], entry["dtype"])
        if entry.get("kind") == "buffer"
        else make_array(key, entry["shape"], entry["dtype"])
        for key, entry in entries.items()
    }


def write(case, folder):
    """Writes the stand-in of a case in its published format; returns its path."""
    state = make_state(case["entries"])
    path = folder / f"{case['checkpoint']}.{case['format']}"
    if case["format"] == "npz":
        np.savez(path, **state)
    elif case["format"] == "safetensors":
        safetensors.numpy.save_file(state, path, metadata={"format": "pt"})
    else:
        write_pth(path, state, wrapper=case["wrapper"])
    return path
