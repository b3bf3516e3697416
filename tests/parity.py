"""Stand-ins for published checkpoints: their keys and shapes, with numbers that depend on both.

The originals' outputs for exactly these numbers are in goldens/forward.npz; those of small models
of the originals' code in goldens/originals.npz, which write_originals.py wrote.
"""

import gzip
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import safetensors.numpy

from vitswin_jax.weights.formats.pth_write import write_pth

GOLDENS = Path(__file__).parent / "goldens" / "weights"
FILES = ("forward", "originals")


def read_cases(file):
    """Returns the cases of a file of goldens, by name; none where it is yet to be written."""
    path = GOLDENS / f"{file}.json.gz"
    return json.loads(gzip.decompress(path.read_bytes())) if path.exists() else {}


CASES = {name: case for file in FILES for name, case in read_cases(file).items()}


def expected(case_id):
    """Returns what the original gave: logits, and where it has them features."""
    for file in FILES:
        if case_id in read_cases(file):
            with np.load(GOLDENS / f"{file}.npz") as arrays:
                names = [name for name in arrays.files if name.startswith(f"{case_id}/")]
                return {name.rpartition("/")[2]: arrays[name] for name in names}
    raise KeyError(case_id)


def make_array(key, shape, dtype="float32"):
    """Returns the array that stands under a key; the same key and shape, the same numbers."""
    digest = hashlib.sha256(f"0:{key}".encode()).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    x, low = rng.standard_normal(tuple(shape)), key.lower()
    if "logit_scale" in low:
        x = math.log(10.0) + x
    elif "relative_position_bias_table" in low or "rel_pos" in low:
        x = 0.5 * x
    elif any(word in low for word in ("pos_embed", "position_embeddings", "posembed")):
        x = 0.2 * x
    elif ("cls" in low.split("/")[-1] or "token" in low) and "classifier" not in low:
        x = 0.5 * x
    elif low.endswith("attn_pool.latent"):
        pass
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
