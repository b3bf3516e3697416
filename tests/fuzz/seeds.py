"""Seeds: small right files of every kind that is read, and what mutates them.

To add a kind, write a function that makes its files in a folder and returns (what to load, the file
to mutate), and give it a row of `KINDS`. What is no weights file has its own `read`.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from drawn import draw
from flax.traverse_util import flatten_dict

import vitswin_jax
from vitswin_jax.weights.formats.pickles import DTYPES
from vitswin_jax.weights.formats.pth import MAGIC
from vitswin_jax.weights.formats.pth_write import pickle_of
from vitswin_jax.weights.formats.read import read_tensors
from vitswin_jax.weights.open import open_pretrained

from . import workdirs
from .datasets import dataset_kinds
from .images import image_kinds
from .mutate import (
    BYTES,
    any_bytes,
    in_member,
    json_value,
    native_metadata,
    pickle_step,
    safetensors_header,
)

VIT = {
    "img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "mlp_ratio": 0.5,
    "num_classes": 3,
}  # fmt: skip
SWIN = {
    "img_size": 16, "patch_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2),
    "window_size": 2, "mlp_ratio": 1.0, "num_classes": 3,
}  # fmt: skip


def numbers_of(path, **fields):
    """Returns all that a weights file says in numbers: parameters, fields and preprocessing."""
    opened = open_pretrained(path, **fields)
    arrays = {
        name: np.asarray(array)
        for name, array in flatten_dict(opened.variables["params"], sep="/").items()
    }
    return arrays, dict(opened.fields), dataclasses.asdict(opened.preprocess)


@dataclass(frozen=True)
class Kind:
    """A kind of input."""

    write: Callable[[Path], tuple[Path, Path]]
    """Makes the files in a folder; returns what is loaded and the file that is mutated."""
    mutations: tuple[Callable, ...] = ()
    """Its own."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `read` that no file of the kind shows."""
    others: bool = True
    """True if the bytes of the file are mutated too."""
    read: Callable = numbers_of
    """Reads what `write` made; returns arrays by their names, and then other facts."""

    @property
    def all_mutations(self):
        """Its own, and those of bytes."""
        return self.mutations + (BYTES if self.others else ())


def save(path, family="vit", format="native", metadata=None, **fields):
    """Writes a model with random parameters; returns the path."""
    model = vitswin_jax.create_model(family, **(VIT if family == "vit" else SWIN) | fields)
    variables = draw(model, scale=1.0)
    return vitswin_jax.save_pretrained(path, model, variables, format=format, metadata=metadata)


def arrays_of(path):
    """Returns the arrays of a weights file under its own names."""
    return {name: tensor.read() for name, tensor in read_tensors(path).tensors.items()}


def one(name, **options):
    """Returns a function that writes one file."""

    def write(folder):
        path = save(folder / name, **options)
        return path, path

    return write


def native(folder):
    """A native file with all metadata."""
    metadata = {
        "name": "vit", "class_names": ["a", "b", "c"], "metrics": {"test/accuracy": 0.5},
        "provenance": {"dataset": "digits", "step": 3}, "train_class_counts": [1, 2, 3],
        "preprocess": {"img_size": [16, 16], "crop_fraction": 0.9, "interpolation": "bilinear"},
    }  # fmt: skip
    path = save(folder / "model.safetensors", metadata=metadata)
    return path, path


def compressed(folder):
    """An npz with deflated members."""
    path = save(folder / "a.npz", format="google")
    np.savez_compressed(path, **arrays_of(path))
    return path, path


def deflated(folder):
    """A PyTorch file that was zipped again."""
    source, path = save(folder / "source.pth", format="timm"), folder / "a.pth"
    with (
        zipfile.ZipFile(source) as archive,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in archive.namelist():
            target.writestr(name, archive.read(name))
    return path, path


def legacy(folder):
    """PyTorch's layout before 1.6: pickles, and the storages after them."""
    arrays = arrays_of(save(folder / "source.pth", format="timm"))
    path, sizes = folder / "a.pth", {"little_endian": True, "type_sizes": {"int": 4}}
    parts = [pickle.dumps(part, 2) for part in (MAGIC, 1001, sizes)]
    parts += [pickle_of(arrays, wrapper="model"), pickle.dumps([*map(str, range(len(arrays)))], 2)]
    parts += [struct.pack("<q", array.size) + array.tobytes() for array in arrays.values()]
    assert all(array.dtype in DTYPES.values() for array in arrays.values())
    path.write_bytes(b"".join(parts))
    return path, path


def index(folder, mutated="model.safetensors.index.json"):
    """Two shards and their index."""
    arrays = arrays_of(save(folder / "source.safetensors", format="timm"))
    names, shards = list(arrays), {}
    for part in range(2):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        safetensors.numpy.save_file({n: arrays[n] for n in names[part::2]}, folder / file)
        shards |= dict.fromkeys(names[part::2], file)
    content = {"metadata": {"total_size": 1}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return folder / "model.safetensors.index.json", folder / mutated


def shard(folder):
    """As `index`; the first shard is mutated."""
    return index(folder, "model-00001-of-00002.safetensors")


def timm_folder(folder):
    """timm's folder of the hub."""
    save(folder / "model.safetensors", format="timm")
    config = {
        "architecture": "vit_tiny_patch16_224", "num_classes": 3, "global_pool": "token",
        "model_args": {key: value for key, value in VIT.items() if key != "num_classes"},
        "pretrained_cfg": {
            "tag": "mine", "input_size": [3, 16, 16], "mean": [0.5, 0.5, 0.5], "crop_pct": 0.9,
            "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop_mode": "center",
            "num_classes": 3, "label_names": ["a", "b", "c"], "fixed_input_size": True,
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder, folder / "config.json"


def transformers_folder(folder, mutated="config.json"):
    """transformers' folder of the hub."""
    save(folder / "model.safetensors", format="huggingface", norm_eps=1e-12)
    config = {
        "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 32,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 16, "patch_size": 8,
        "num_channels": 3, "qkv_bias": True, "id2label": {"0": "a", "1": "b", "2": "c"},
    }  # fmt: skip
    processor = {
        "do_resize": True, "size": {"height": 16, "width": 16}, "resample": 2, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5], "do_center_crop": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder, folder / mutated


def processor(folder):
    """As `transformers_folder`; the processor's file is mutated."""
    return transformers_folder(folder, "preprocessor_config.json")


def workdir(folder):
    """A run's workdir after two checkpoints, as an archive."""
    return workdirs.write(folder, save(folder / "model.safetensors"))


MEMBER = in_member(any_bytes)
NPY = in_member(any_bytes, ".npy")
PICKLE = in_member(pickle_step, "data.pkl")
SWIN_TORCH = {"family": "swin", "format": "microsoft"}

HEADS = {"num_heads": 1}  # no timm file of this width shows them

KINDS: dict[str, Kind] = (
    {
        "native": Kind(native),
        "native-metadata": Kind(native, (native_metadata,), others=False),
        "native-swin": Kind(one("a", family="swin"), (safetensors_header,)),
        "safetensors": Kind(one("a.safetensors", format="timm"), (safetensors_header,) * 3, HEADS),
        "npz": Kind(one("a.npz", format="google")),
        "npz-deflated": Kind(compressed),
        "npz-members": Kind(one("a.npz", format="google"), (NPY,), others=False),
        "pth": Kind(one("a.pth", format="timm"), fields=HEADS),
        "pth-deflated": Kind(deflated, fields=HEADS),
        "pth-members": Kind(
            one("a.pth", format="timm"), (PICKLE, PICKLE, MEMBER), HEADS, others=False
        ),
        "pth-swin": Kind(one("a.pth", **SWIN_TORCH), (PICKLE, PICKLE)),
        "pth-legacy": Kind(legacy, (pickle_step,) * 4, HEADS),
        "index": Kind(index, (json_value,) * 6, HEADS),
        "shard": Kind(shard, (safetensors_header,), HEADS),
        "config-timm": Kind(timm_folder, (json_value,) * 12),
        "config-transformers": Kind(transformers_folder, (json_value,) * 12),
        "preprocessor": Kind(processor, (json_value,) * 12),
        "workdir": Kind(workdir, (workdirs.damage,), others=False, read=workdirs.read),
    }
    | image_kinds(Kind)
    | dataset_kinds(Kind)
)
"""`-members` and `-metadata` have right checksums after the change, so that readers get to it."""


def made(name, folder):
    """Returns (what to load, the file to mutate, its bytes) of a kind, made in a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    load, file = KINDS[name].write(folder)
    return load, file, file.read_bytes()
