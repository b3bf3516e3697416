"""The folder in which a page is followed: a stand-in for the repository's root, and what is given.

What the pages take for granted are photographs, folders of them, and runs that have ended.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import short_recipe
from documents import Reader, read_page
from drawn import draw
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

import vitswin_jax
from vitswin_jax.core import recipes
from vitswin_jax.weights.formats.pth_write import write_pth
from vitswin_jax.weights.formats.read import read_tensors

ROOT = Path(__file__).parents[1]


def stand_in(root):
    """Makes a folder like the repository's root: train.py, docs, recipes, some of them short."""
    for folder in ("configs", "docs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__*"))
    shutil.copy(ROOT / "train.py", root)
    for name in short_recipe.CHANGES:
        recipe = root / "configs" / f"{name}.py"
        recipe.rename(recipe.with_name(f"long_{name}.py"))
        shutil.copy(short_recipe.__file__, recipe)
    return root


def _photo(name: str) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(load_sample_image(f"{name}.jpg")).save(path)


def _digit(path: Path) -> None:
    pixels = load_digits().images[3] * (255 / 16)
    Image.fromarray(pixels.astype(np.uint8)).resize((32, 32)).save(path)


def _classes(classes: dict[str, str], images: int) -> Callable[[Path], None]:
    """Returns what writes a folder with one folder a class: parts of the two photographs."""

    def write(folder: Path) -> None:
        for label, photo in classes.items():
            (folder / label).mkdir(parents=True)
            whole = Image.fromarray(load_sample_image(f"{photo}.jpg"))
            for i in range(images):
                part = whole.crop((20 * i, 10 * i, 20 * i + 240, 10 * i + 180)).resize((64, 48))
                part.save(folder / label / f"{i:04d}.jpg")

    return write


def _photos(folder: Path) -> None:
    (folder / "2026").mkdir(parents=True)
    _photo("china")(folder / "2026" / "temple.jpg")
    _digit(folder / "01.png")
    _digit(folder / "three.png")


def _weights(name: str, format: str, **fields: object) -> Callable[[Path], None]:
    """Returns what writes a file of a source whose weights are drawn by chance."""

    def write(path: Path) -> None:
        model = vitswin_jax.create_model(name, **fields)
        variables = draw(model, scale=0.05)
        vitswin_jax.save_pretrained(path, model, variables, format=format)

    return write


def _training(path: Path) -> None:
    """Writes what timm's training saves: a model and its average."""
    _weights("vit_tiny_patch16_224", "timm", img_size=32, depth=1)(path.with_suffix(".pth"))
    tensors = read_tensors(path.with_suffix(".pth")).tensors
    copies = {
        f"{key}.{name}": tensor.read()
        for key in ("state_dict", "state_dict_ema")
        for name, tensor in tensors.items()
    }
    write_pth(path, copies, wrapper=None)


THINGS = {
    "some.jpg": _photo("flower"),
    "another.jpg": _photo("china"),
    "some.png": _digit,
    "three.png": _digit,
    "deit_small.pth": _weights("deit_small_patch16_224", "timm", depth=1),
    "swin.pth": _weights(
        "swin", "microsoft", img_size=32, patch_size=2, embed_dim=24, depths=(2, 2),
        num_heads=(2, 4), window_size=4, num_classes=10,
    ),
    "Ti_16.npz": _weights(
        "vit_tiny_patch16_224", "google", img_size=32, depth=2, num_classes=10, act="gelu_tanh"
    ),
    "checkpoint.pth.tar": _training,
    "mae.pth": _weights("vit_base_patch16_224", "timm", depth=1, num_classes=0),
    "photos": _photos,
    "flowers": _classes({"daisy": "flower", "tulip": "china"}, 16),
}  # fmt: skip
RUNS = {
    "runs/quickstart/vit": "configs/digits.py:vit",
    "runs/quickstart/swin": "configs/digits.py:swin",
}


def follow_page(page: Path, root: Path, *, given: Path, programs: Path) -> None:
    """Follows a page in the folder `root`; what many take for granted is made once, in `given`."""
    page = read_page(page)
    for name in page.given:
        _make(name, given, programs)
        copy = shutil.copytree if (given / name).is_dir() else shutil.copy
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        copy(given / name, root / name)
    _enter(stand_in(root), programs).follow(page)


def _make(name: str, root: Path, programs: Path) -> None:
    """Makes what is called `name` unless it is there; raises KeyError for what is unknown."""
    if (root / name).exists():
        return
    if name in THINGS:
        THINGS[name](root / name)
        return
    command = f"python train.py --config={RUNS[name]} --workdir={name}"
    status, told = _enter(root, programs).run(command)
    assert status == 0, told


def _enter(root: Path, programs: Path) -> Reader:
    """Goes to a folder as its reader: `configs`, and recipes by name, are its own."""
    os.chdir(root)
    recipes.FOLDER = root / "configs"
    sys.path[:] = [str(root), *(path for path in sys.path if path != str(root))]
    for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
        del sys.modules[name]
    return Reader(root, programs)
