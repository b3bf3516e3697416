"""Rooms in the order in which they are entered, from `load_pretrained(file)` to `model.apply`.

A call enters a room where a function, a method or a class of the room is called by its name, and
the nearest frame of the package above it is of another room (or there is none). Returning to the
caller is no entry. Nor is running a closure: it is a value that its room gave out, as a tensor's
reader is, and the room was entered when it was made. The calls of all threads count.

`VALUES` are types that every room passes on; their frames are looked through. `models` includes
`nn`, for a loop over blocks in `nn` calls back the block, and `weights.shapes`, the question that
weights ask of a model.
"""

import functools
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from drawn import draw
from kinds import mostly_long
from PIL import Image

import vitswin_jax
from vitswin_jax.cli import main
from vitswin_jax.weights import load, save  # noqa: F401  imported before anything is profiled
from vitswin_jax.weights import open as weights_open
from vitswin_jax.weights.formats.read import read_tensors
from vitswin_jax.weights.locate import locate
from vitswin_jax.weights.shapes import parameter_shapes
from vitswin_jax.weights.sources.read import read_original

PACKAGE = f"{Path(vitswin_jax.__file__).parent}/"
VALUES = (
    "core/",
    "data/augment/transforms",
    "weights/formats/tensors",
    "weights/metadata",
)
ROOMS = {  # the first that fits, of a module's path in the package
    "weights/locate": "locate",
    "weights/published": "locate",
    "weights/download": "locate",
    "weights/formats/": "formats",
    "weights/sources/": "sources",
    "weights/shapes": "models",
    "models/": "models",
    "nn/": "models",
    "weights/": "weights",
}
ORDER = ["weights", "locate", "formats", "sources", "models"]
DOWN = {  # room -> the rooms that it may call, closures included
    None: {"weights", "models"},
    "weights": {"locate", "formats", "sources", "models"},
    "locate": {"formats"},
    "sources": {"formats", "models"},
    "formats": set(),
    "models": set(),
}
DOORS = (locate, read_tensors, read_original)
"""The functions by which `weights` enters the rooms that find, parse and name a file's tensors."""


class Rooms:
    """Records the calls from room to room while it is entered as a context."""

    def __init__(self):
        self.entered = []
        self.calls = set()

    def __enter__(self):
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)
        threading.setprofile(None)

    def _note(self, frame, event, _):
        room = room_of(frame.f_code.co_filename) if event == "call" else None
        if room is None:
            return
        caller = frame.f_back
        while caller is not None and room_of(caller.f_code.co_filename) is None:
            caller = caller.f_back
        above = caller and room_of(caller.f_code.co_filename)
        name = frame.f_code.co_qualname
        if above == room:
            return
        given_out = "<locals>" in name or "<lambda>" in name
        if above is not None or not given_out:  # a thread begins with a closure
            self.calls.add((above, room))
        if not given_out and self.entered[-1:] != [room]:
            self.entered.append(room)


@functools.cache
def room_of(path):
    if not path.startswith(PACKAGE):
        return None
    path = path.removeprefix(PACKAGE)
    if path.startswith(VALUES):
        return None
    return next((room for start, room in ROOMS.items() if path.startswith(start)), None)


VIT = {"img_size": 32, "embed_dim": 192, "depth": 2, "num_heads": 3, "num_classes": 3}
SWIN = {
    "img_size": 24, "patch_size": 2, "embed_dim": 12, "depths": (2, 1), "num_heads": (2, 4),
    "window_size": 3, "num_classes": 3,
}  # fmt: skip
FILES = {
    "timm's ViT": ("vit", VIT, "timm", "vit.safetensors"),
    "timm's ViT as pth": ("vit", VIT, "timm", "vit.pth"),
    "Google's ViT": ("vit", VIT, "google", "vit.npz"),
    "Microsoft's Swin": ("swin", SWIN, "microsoft", "swin.pth"),
    "our own Swin": ("swin", SWIN, "native", "own.safetensors"),
}


def write(kind, folder):
    family, fields, format, name = kind
    model = vitswin_jax.create_model(family, **fields)
    path = folder / name
    vitswin_jax.save_pretrained(path, model, draw(model), format=format)
    parameter_shapes.cache_clear()  # so that every question to a model shows
    return path


@pytest.fixture(params=mostly_long(FILES, ["timm's ViT as pth", "our own Swin"]))
def file(request, tmp_path):
    return write(FILES[request.param], tmp_path)


def test_no_room_is_entered_twice_and_none_upwards(file):
    with Rooms() as rooms:
        model, variables = vitswin_jax.load_pretrained(file)
        images = np.zeros((1, model.img_size, model.img_size, 3), np.float32)
        jax.jit(model.apply)(variables, images).block_until_ready()
    native = file.name == "own.safetensors"
    assert rooms.entered == [room for room in ORDER if room != "sources" or not native]
    assert [call for call in rooms.calls if call[1] not in DOWN[call[0]]] == []


def test_metadata_is_had_without_reading_a_tensor(file, monkeypatch):
    monkeypatch.setattr("vitswin_jax.weights.open.read_onto", None)
    pretrained = vitswin_jax.open_pretrained(file)
    assert pretrained.model.num_classes == 3
    assert pretrained.metadata == vitswin_jax.load_metadata(file)
    assert pretrained.class_names == ("class 0", "class 1", "class 2")
    assert pretrained.preprocess.img_size == (pretrained.model.img_size,) * 2
    with pytest.raises(TypeError, match="NoneType"):
        _ = pretrained.variables


@pytest.fixture
def swin(tmp_path):
    return write(FILES["Microsoft's Swin"], tmp_path)


def test_a_room_that_is_entered_twice_shows(swin):
    """What `vitswin predict` did before there was one object: three openings of one file."""
    with Rooms() as rooms:
        vitswin_jax.load_metadata(swin)
        vitswin_jax.load_pretrained(swin)
        vitswin_jax.make_preprocess(swin)
    assert rooms.entered == 3 * ORDER


@pytest.mark.parametrize(
    "command",
    [
        "predict FILE IMAGE --features OUT.npz",
        "convert FILE OUT.safetensors --img-size 12",
        "explain FILE IMAGE --out OUT --only filters",
        "models FILE",
    ],
    ids=lambda command: command.partition(" ")[0],
)
def test_a_command_opens_its_file_once(swin, tmp_path, command, monkeypatch):
    image, called = tmp_path / "a.png", []
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(image)
    for door in DOORS:

        def counted(*args, door=door, **kwargs):
            called.append(door.__name__)
            return door(*args, **kwargs)

        monkeypatch.setattr(weights_open, door.__name__, counted)
    words = command.replace("FILE", str(swin)).replace("IMAGE", str(image))
    assert main(words.replace("OUT", str(tmp_path / "out")).split()) == 0
    assert called == [door.__name__ for door in DOORS]
