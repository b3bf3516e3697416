"""A trained model for export in any format: a function of images only.

Weights stand inside, in loop layout; the batch is left open, and on request height and width; all
is computed in float32, and with float32's own products on every device (matmul precision
"highest").
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export
from jaxtyping import Array, Float32, Shaped, UInt8

from vitswin_jax.core.types import Params, UserError
from vitswin_jax.core.version import __version__
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.data.channels import luminance
from vitswin_jax.export import positions
from vitswin_jax.export.quantize import quantize_parameters
from vitswin_jax.models.fields import plain
from vitswin_jax.models.open_size import at_size, fixed_by, step_of
from vitswin_jax.models.registry import family_of
from vitswin_jax.nn.batch import infer
from vitswin_jax.nn.layers import pair
from vitswin_jax.nn.scan import unstack_blocks
from vitswin_jax.nn.sides import Size
from vitswin_jax.weights.metadata import Metadata
from vitswin_jax.weights.resize import Method, resize_pos_embed
from vitswin_jax.weights.sources.preprocess import preprocess_of

TOLERANCE = 1e-4
"""How far an export's logits may be from the model's, in their standard deviations."""

BATCH = "batch"
SIDES = ("height", "width")
"""Names of open axes of images."""
COUNTS = ("rows", "columns")
"""Symbols of how often a step goes into an open side."""

Arrays = Mapping[str, Any]
"""Flat paths to float32 arrays, or to int8 codes with their scales."""

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Difference:
    """The largest difference of two programs' logits, and the spread of the logits."""

    largest: float
    std: float

    @property
    def is_rounding(self) -> bool:
        """Whether it is no more than the order of float32's operations can make."""
        return self.largest <= TOLERANCE * max(self.std, 1e-6)

    def __str__(self) -> str:
        return f"{self.largest:.3g} (their std is {self.std:.3g})"


@dataclass(frozen=True)
class Program:
    """A model with its weights and its metadata; `make_program` makes it."""

    model: nn.Module
    params: Mapping[str, np.ndarray]
    """Flat float32 parameters; what is quantised is rounded already."""
    codes: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Of the quantised: int8 codes and scales."""
    pixels: Preprocess | None
    """How the program normalises uint8 images; None: it takes normalised ones."""
    metadata: Metadata
    preprocess: Preprocess
    """The metadata's, else the default of the model; at `size`."""
    size: Size
    """Height and width of its images; where they are open, of those that calls name first."""
    resized: Method | None = None
    """How tables of positions follow an open height and width; None: images have one size."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of its images, as `size` has them."""
        return (*self.size, self.model.in_chans)

    @property
    def dimensions(self) -> tuple[int | str, ...]:
        """The axes of its images: numbers, and the names of those that are open."""
        sides = self.size if self.resized is None else SIDES
        return (BATCH, *sides, self.model.in_chans)

    @property
    def image_dtype(self) -> np.dtype:
        """The dtype of its images: float32, normalised; or uint8 in [0, 255]."""
        return np.dtype(np.float32 if self.pixels is None else np.uint8)

    @property
    def output(self) -> str:
        """The name of the output."""
        return "logits" if self.model.num_classes else "features"

    def take(self, pixels: UInt8[np.ndarray, "b h w c"]) -> Shaped[np.ndarray, "b h w c"]:
        """Returns resized and cropped images in [0, 255] as the program takes them."""
        return pixels if self.pixels is not None else self.preprocess.normalize(pixels)

    def image_spec(self) -> jax.ShapeDtypeStruct:
        """Returns images in a batch of any size, and where it is open, of any size that fits.

        An open side is a symbol or, where `step_of` the model is s, the text "s*symbol".
        """
        if self.resized is None:
            sides = ", ".join(map(str, self.size))
        else:
            steps = zip(step_of(self.model), SIDES, COUNTS, strict=True)
            sides = ", ".join(side if s == 1 else f"{s}*{count}" for s, side, count in steps)
        least = zip(SIDES, pair(self.model.patch_size), strict=True)
        shape = export.symbolic_shape(
            f"{BATCH}, {sides}, {self.model.in_chans}",
            constraints=[f"{side} >= {patch}" for side, patch in least if side in sides],
        )
        return jax.ShapeDtypeStruct(shape, self.image_dtype)

    def at(self, size: Size) -> Program:
        """Returns the program for images of `size` only: tables are resized here, by NumPy."""
        if size == self.size:
            return dataclasses.replace(self, resized=None)
        model, preprocess = at_size(self.model, size), self.preprocess
        params = dict(self.params) | {
            name: resize_pos_embed(self.params[name], old=old, new=new, method=method)
            for name, old, new, method in self._tables(model)
        }
        preprocess = preprocess.fitted(size, self.model.in_chans)
        return dataclasses.replace(
            self, model=model, params=params, size=size, preprocess=preprocess, resized=None
        )

    @property
    def checked_sizes(self) -> tuple[Size, ...]:
        """The sizes other than `size` at which an export with open sides is compared."""
        if self.resized is None:
            return ()
        (h, w), (p, q) = self.size, pair(self.model.patch_size)
        if step_of(self.model) == (1, 1):
            return (h + p + 1, w + 2 * q + 1), (max(h // 2, p) + 1, w)
        return (h + p, w + 2 * q), (max(h // p // 2, 1) * p, w)

    def apply(self, weights: Arrays, images: Array) -> Float32[Array, "b k"]:
        """Returns the logits of images; traced by every exporter."""
        if self.pixels is not None:
            mean, std = (jnp.asarray(x, jnp.float32) for x in (self.pixels.mean, self.pixels.std))
            mean, std = mean[None, None, None], std[None, None, None]
            images = (images.astype(jnp.float32) / 255 - mean) / std
        flat = {
            path: leaf[0].astype(jnp.float32) * leaf[1]
            if isinstance(leaf, tuple)
            else jnp.asarray(leaf)
            for path, leaf in weights.items()
        }
        with jax.default_matmul_precision("highest"):
            model = self.model if self.resized is None else self._follow(flat, images)
            return infer(model, unflatten_dict(flat, sep="/"), images)

    def _follow(self, flat: dict[str, Any], images: Array) -> nn.Module:
        """Returns the model for images of an open size; resizes the tables of `flat`."""
        _, height, width, _ = images.shape
        model = at_size(self.model, (height, width))
        for name, old, new, method in self._tables(model):
            flat[name] = positions.resized(flat[name], old=old, new=new, method=method)
        return model

    def _tables(self, model: nn.Module) -> Iterator[tuple[str, Size, Size, Method]]:
        """Yields each table that a model for another size resizes, both grids and the method."""
        if self.resized is None or model is self.model:
            return
        for name in self.params:
            if name.rpartition("/")[2] == "pos_embed":
                yield name, self.model.grid, model.grid, self.resized

    def runner(self) -> Run:
        """Returns the program as JAX runs it here, from images to logits.

        Where sides are open, each size has a program of its own (`at`).
        """

        @functools.cache
        def applied(size: Size) -> Callable[[np.ndarray], Array]:
            program = self if self.resized is None else self.at(size)
            return functools.partial(jax.jit(program.apply), program.params)

        return lambda images: np.asarray(applied(images.shape[1:3])(images))

    def describe(self, **more: Any) -> dict[str, Any]:
        """Returns plain data: what the program takes and gives, and whose weights it has."""
        axes = ", ".join(map(str, self.dimensions))
        normal = "normalised, (pixel / 255 - mean) / std" if self.pixels is None else "in [0, 255]"
        return {
            "name": self.metadata.name,
            "input": f"images {self.image_dtype} ({axes}), {normal}",
            "output": f"{self.output} float32 (batch, {self.model.num_classes or 'channels'})",
            "weights": "int8, one scale for each output channel" if self.codes else "float32",
            **({} if self.resized is None else {"image_step": step_of(self.model)}),
            "preprocess": dataclasses.asdict(self.preprocess),
            "class_names": self.metadata.class_names,
            "provenance": dict(self.metadata.provenance),
            "versions": {"vitswin_jax": __version__, "jax": jax.__version__},
            **more,
        }


def make_program(
    model: nn.Module,
    variables: Mapping[str, Params],
    *,
    metadata: Metadata | None = None,
    uint8: bool = False,
    quantize: bool = False,
    resized: Method | None = None,
) -> Program:
    """Returns the program of a model in any layout and dtype.

    Preprocessing is the metadata's, else the default of the model (`default_preprocess`). With
    `uint8` the program takes pixels and normalises them by its mean and std; `quantize` rounds
    matrices to int8. `resized` leaves height and width open: it is the method of the weights'
    source for tables of positions, `Pretrained.methods.pos_embed`. Raises UserError for a model
    that cannot have them open.
    """
    if resized is not None:
        _check_open(model, resized)
    metadata = metadata or Metadata(name=family_of(model), fields={})
    preprocess = preprocess_of(model, metadata)
    model = plain(model, dtype=jnp.dtype("float32"))
    flat = flatten_dict(unstack_blocks(variables["params"]), sep="/")
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in sorted(flat.items())}
    codes = quantize_parameters(flat) if quantize else {}
    flat |= {path: code.astype(np.float32) * scale for path, (code, scale) in codes.items()}
    pixels, size = preprocess if uint8 else None, pair(model.img_size)
    return Program(model, flat, codes, pixels, metadata, preprocess, size, resized)


def sample_images(program: Program) -> np.ndarray:
    """Returns images to compare on, as model input: scikit-learn's two photos, and noise."""
    height, width, channels = program.image_shape
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1, height, width, channels), np.uint8)
    if channels not in (1, 3):
        return program.take(noise)
    from sklearn.datasets import load_sample_images

    photos = [np.asarray(image) for image in load_sample_images().images]
    photos = [luminance(image) if channels == 1 else image for image in photos]
    pixels = np.concatenate([np.stack([program.preprocess.image(p) for p in photos]), noise])
    return program.take(pixels)


def _check_open(model: nn.Module, method: Method) -> None:
    """Raises UserError for a model whose images cannot have an open height and width."""
    if reason := fixed_by(model):
        raise UserError(
            f"--any-size: {reason}; leave the option out, and export one file for each --img-size."
        )
    positions.formula(method)


def compare(run: Run, other: Run, batches: Iterable[np.ndarray]) -> Difference:
    """Returns how far two programs' logits are apart on batches of images.

    Raises UserError where their shapes differ, or a logit is not a finite number.
    """
    pairs = [(run(images), other(images)) for images in batches]
    if wrong := [(a.shape, b.shape) for a, b in pairs if a.shape != b.shape]:
        raise UserError(f"the outputs are {wrong[0][0]} and {wrong[0][1]}, and should be alike.")
    ours, theirs = (np.concatenate(logits) for logits in zip(*pairs, strict=True))
    if not np.isfinite([ours, theirs]).all():
        raise UserError("the outputs are not finite numbers; check the weights for NaN.")
    return Difference(float(np.abs(ours - theirs).max()), float(ours.std()))


def check_export(program: Program, run: Run, images: np.ndarray | None = None) -> Difference:
    """Returns how far a reloaded export is from JAX: on one image, and on all in one batch.

    `images` are as the program takes them; by default `sample_images`. Where sides are open, the
    samples of `checked_sizes` are compared too. Raises UserError where the difference is more than
    rounding.
    """
    images = sample_images(program) if images is None else images
    others = [sample_images(program.at(size)) for size in program.checked_sizes]
    difference = compare(program.runner(), run, (images[:1], images, *others))
    if not difference.is_rounding:
        raise UserError(
            f"the export differs from JAX by {difference}, which is more than {TOLERANCE:g} of the "
            "std; nothing was written."
        )
    return difference
