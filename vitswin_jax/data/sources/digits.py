"""The embedded datasets: scikit-learn's 1,797 handwritten digits, 8x8, in ten classes or in two."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vitswin_jax.core.cache import cache_dir
from vitswin_jax.core.types import Record, UserError

NAME = "digits"
EMBEDDED = {NAME: tuple("0123456789"), "digits_parity": ("even", "odd")}
"""Name -> classes; a digit's class is its remainder by their number."""
_TEST_EVERY = 4  # images 0, 4, 8, ... are the test split


def digits_directory(data_dir: str | os.PathLike[str] | None = None, *, name: str = NAME) -> Path:
    """Returns the directory of one of `EMBEDDED` as a TFDS dataset, and prepares it on first use.

    It lies under `data_dir`, or in the user's cache directory. Several processes may call
    this at once: each writes a directory of its own, and the first to finish names it.

    Raises UserError where the directory cannot be written.
    """
    root = cache_dir() if data_dir is None else Path(data_dir).expanduser()
    directory = root / name / "1.0.0"
    if not (directory / "dataset_info.json").exists():
        try:
            _prepare(root, directory, name)
        except OSError as error:
            raise UserError(
                f"{name}: cannot be prepared in {root}: {error.strerror or error}; give a "
                "data_dir that is writable."
            ) from error
    return directory


def _prepare(root: Path, directory: Path, name: str) -> None:
    from vitswin_jax.data.sources.builder import EncodedImageBuilder  # TFDS takes 0.4 s to import

    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as scratch:
        builder = EncodedImageBuilder(
            name,
            {split: functools.partial(_examples, name, split) for split in ("train", "test")},
            class_names=EMBEDDED[name],
            description="Optical recognition of handwritten digits, from scikit-learn.",
            data_dir=scratch,
        )
        # TFDS announces a download of unknown size; there is none.
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            builder.download_and_prepare()
        _publish(Path(builder.data_dir), directory)


def _publish(source: Path, target: Path) -> None:
    """Renames `source` to `target` unless a complete `target` got there first."""
    try:
        source.rename(target)  # atomic; fails where `target` holds anything
    except OSError:
        if not (target / "dataset_info.json").exists():
            shutil.rmtree(target)  # left half deleted or half copied by someone's hand
            source.rename(target)


def _examples(name: str, split: str) -> Iterator[Record]:
    import sklearn.datasets  # 1 s to import, once in the life of a cache directory

    digits = sklearn.datasets.load_digits()
    levels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0 to 16
    for index, (image, label) in enumerate(zip(levels, digits.target, strict=True)):
        if (index % _TEST_EVERY == 0) == (split == "test"):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            yield Record(image=png.getvalue(), label=int(label) % len(EMBEDDED[name]))
