"""The report of a run without labels, with pictures of images that the model filled in."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import UInt8

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.types import Batch, Params, Source
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.data.channels import as_rgb
from vitswin_jax.evaluate.reconstruction import reconstruct
from vitswin_jax.models.masked import MaskedModel, Reconstruction, enlarge
from vitswin_jax.models.unlabelled import encoder_of
from vitswin_jax.report import curves, figures
from vitswin_jax.report.page import percent, template
from vitswin_jax.report.pages import environment, head, of_hosts
from vitswin_jax.report.runs import read_config, read_metrics

_GREY = 160
_PICTURES = 8
SMALL = 96  # pictures of fewer pixels a side are shown enlarged, with their pixels


@dataclass(frozen=True)
class Pictures:
    """Images three times, each uint8 (n, h, w, 3) in [0, 255]."""

    original: UInt8[np.ndarray, "n h w c"]
    masked: UInt8[np.ndarray, "n h w c"]
    """Grey where patches were hidden."""
    reconstructed: UInt8[np.ndarray, "n h w c"]
    """The hidden patches as predicted, the others as they were."""

    @classmethod
    def draw(
        cls, model: MaskedModel, params: Params, batch: Batch, preprocess: Preprocess
    ) -> Pictures:
        """Returns the pictures of the first images of an evaluation batch."""
        images = np.asarray(batch["image"])[:_PICTURES][np.asarray(batch["mask"][:_PICTURES]) > 0]
        how: dict[str, Any] = {"mean": preprocess.mean, "std": preprocess.std}
        out = jax.jit(functools.partial(reconstruct, model=model, **how))(params, {"image": images})
        return cls.of(images, out, **how)

    @classmethod
    def of(
        cls,
        images: UInt8[np.ndarray, "n h w c"],
        out: Reconstruction,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> Pictures:
        """Returns the pictures of images and of their reconstructions, normalised by mean, std."""
        painted = (np.asarray(out.image) * np.asarray(std) + np.asarray(mean)) * 255
        grid = out.masks.shape[1:]
        cell = tuple(a // b for a, b in zip(images.shape[1:3], grid, strict=True))
        hidden = np.asarray(enlarge(out.masks, cell))[..., None]
        return cls(
            images,
            np.where(hidden, np.uint8(_GREY), images),
            np.where(hidden, painted.round().clip(0, 255).astype(np.uint8), images),
        )

    def rows(self) -> list[dict[str, Any]]:
        """Returns the three of each image as `data:` URIs, for a page."""
        triples = zip(self.original, self.masked, self.reconstructed, strict=True)
        small = max(self.original.shape[1:3]) < SMALL
        return [
            {"pictures": [figures.picture(as_rgb(image)) for image in triple], "small": small}
            for triple in triples
        ]


def write_pretraining_report(
    path: str | os.PathLike[str],
    *,
    model: MaskedModel,
    params: Params,
    batches: Iterable[Batch],
    preprocess: Preprocess,
    **page: Any,
) -> Path:
    """Writes the report of a masked model (`write_unlabelled_report`); returns `path`.

    The first of the evaluation `batches` has the images that are shown.
    """
    rows = Pictures.draw(model, params, next(iter(batches)), preprocess).rows()
    return write_unlabelled_report(
        path, "pretraining.html", model=model, params=params, shown={"rows": rows}, **page
    )


def write_unlabelled_report(
    path: str | os.PathLike[str],
    name: str,
    *,
    title: str,
    model: nn.Module,
    params: Params,
    numbers: Mapping[str, float],
    step: int,
    method: Mapping[str, Any],
    source: Source,
    workdir: str | os.PathLike[str],
    command: str | None,
    origin: Mapping[str, Any] | None,
    facts: Sequence[tuple[str, str]] = (),
    shown: Mapping[str, Any],
) -> Path:
    """Writes the report of a model that was pre-trained without labels; returns `path`.

    The template called `name` is given what is `shown` of the `method`, besides what all have.
    `numbers` has the loss of the test images of `source`, and the accuracies of probes in [0, 1].
    Raises UserError if the file cannot be written.
    """
    first = {
        "step": f"{step:,}",
        "test loss": f"{numbers['test/loss']:.4f}",
        **{
            name: percent(numbers[key])
            for key, name in (
                ("test/knn_accuracy", "nearest neighbours"),
                ("test/linear_accuracy", "linear probe"),
            )
            if key in numbers
        },
        "parameters": f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}",
    }
    encoder, own = encoder_of(model, params)
    if encoder is not model:
        first["of the encoder"] = f"{sum(leaf.size for leaf in jax.tree.leaves(own)):,}"
    series = read_metrics(workdir)
    page = template(name).render(
        title=f"{method['method']}: {title}",
        subtitle=f"{type(encoder).__name__} on {source.name}, {len(source):,} images, whose labels "
        "it never saw",
        command=command,
        numbers=first.items(),
        curves=[*curves.curves(series), *of_hosts(workdir)],
        facts=head(facts, series, workdir),
        origin=origin,
        method=method.items(),
        environment=environment(),
        config=flatten_dict(read_config(workdir), sep=".").items(),
        **shown,
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)
