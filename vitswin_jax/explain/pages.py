"""Everything that explains a model and its view of images, as pictures and as one page."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.types import Params, UserError
from vitswin_jax.explain import pictures
from vitswin_jax.explain.attention import (
    Attention,
    LayerAttention,
    attention_maps,
    mean_attention_distance,
    received,
    relative_bias_maps,
    rollout,
)
from vitswin_jax.explain.grad_cam import grad_cam
from vitswin_jax.explain.learned import patch_filters, position_embedding
from vitswin_jax.models.geometry import by_stage, geometry_of
from vitswin_jax.nn.scan import unstack_blocks
from vitswin_jax.report import figures
from vitswin_jax.report.page import template

PARTS = {  # of each image, then of the model; each with its heading and what it shows
    "rollout": (
        "Attention rollout",
        "How much each patch contributes to what the head reads, through the attention of all "
        "blocks. A block counts half as attention and half as its shortcut (arXiv:2005.00928).",
    ),
    "gradcam": (
        "Grad-CAM",
        "The places that raise the logit of the class: the channels of the last map, weighted by "
        "the mean gradient of that logit (arXiv:1610.02391).",
    ),
    "windows": (
        "Windows",
        "The attention that each place receives within its window, the mean over the heads, in the "
        "last two blocks of each stage. White lines are the windows. Shifted windows are shown in "
        "their true place. Each map has its own scale.",
    ),
    "heads": (
        "Heads",
        "The attention that each head gives to each place. The query is the class token if the "
        "model reads its output, and else the mean over all tokens. Each map has its own scale.",
    ),
    "distance": (
        "Mean attention distance",
        "How far each head looks: the mean distance from a query to the places that it attends to, "
        "over all images (ViT, figure 7 right).",
    ),
    "positions": (
        "Position embeddings",
        "Each small map shows how similar the embedding of one place of the grid is to those of "
        "all places (ViT, figure 7 centre).",
    ),
    "biases": (
        "Relative position biases",
        "The number that each head adds to the attention of a query, at the centre, for the keys "
        "around it. Red adds attention, and blue removes it. The mean of a head is subtracted, "
        "because a constant changes no attention. Each block has its own scale.",
    ),
    "filters": (
        "Patch filters",
        "The first principal components of the patch embedding's filters (ViT, figure 7 left).",
    ),
}

GRID = ("rollout", "gradcam")
"""The parts that stand beside the image; the others of an image are folded."""


@dataclass(frozen=True)
class Picture:
    """One PNG; `name` is its part and, where a part has several, which."""

    name: str
    data: bytes

    @property
    def part(self) -> str:
        """The key in PARTS."""
        return self.name.partition(".")[0]


@dataclass
class Section:
    """A part of the page: an image's pictures, or the model's."""

    title: str
    text: str
    pictures: list[Picture] = field(default_factory=list)
    image: UInt8[np.ndarray, "h w 3"] | None = None
    """The image as the model is given it."""
    classes: Sequence[tuple[str, float]] = ()
    """The most probable classes and their probabilities in [0, 1]."""


def available_parts(model: nn.Module, params: Params) -> tuple[str, ...]:
    """Returns the parts that a model has, in the order of PARTS."""
    geometry = geometry_of(model)
    attends = geometry.attention is not None
    has = {
        "rollout": attends,
        "gradcam": model.num_classes > 0,
        "windows": attends and geometry.blocks[0].cut is not None,
        "heads": attends,
        "distance": attends,
        "positions": geometry.positions is not None,
        "biases": geometry.biases,
        "filters": patch_filters(model, params) is not None,
    }
    return tuple(part for part in PARTS if has[part])


class Explainer:
    """Explanations of a model: a picture page for each image, and one of its parameters.

    Images go through one at a time, since the attention weights of large models are large. The
    variables may be in loop or scan layout. Raises UserError for parts that the model lacks.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, Params],
        *,
        parts: Sequence[str] | None = None,
    ) -> None:
        """Takes the parts to show, by default all that the model has."""
        self._model = model.clone(scan=False, remat="none")
        self._params = unstack_blocks(variables["params"])
        known = available_parts(model, self._params)
        if wrong := [part for part in parts or () if part not in known]:
            raise UserError(
                f"{', '.join(wrong)}: nothing to show of this {type(model).__name__}, which has "
                f"{', '.join(known)}."
            )
        self.parts = known if parts is None else tuple(part for part in known if part in parts)
        self._last: Attention
        self._distances: list[list[np.ndarray]] = []

    def of_image(
        self,
        image: Float[np.ndarray, "h w c"],
        pixels: UInt8[np.ndarray, "h w 3"],
        *,
        label: int | None = None,
    ) -> Iterator[Picture]:
        """Yields the pictures of an image, normalised and as it is; Grad-CAM's is of `label`.

        Which only a model without a head does without.
        """
        inputs, variables = image[None], {"params": self._params}
        blocks = geometry_of(self._model).blocks
        if {"rollout", "windows", "heads", "distance", "biases"} & set(self.parts):
            self._last = attention_maps(self._model, variables, inputs)
        if "distance" in self.parts:
            layers = self._last.layers
            self._distances.append([mean_attention_distance(layer)[0] for layer in layers])
        if "rollout" in self.parts:
            heat = rollout(self._last)[0]
            figure = pictures.heat_on_image(pixels, heat, stride=blocks[0].stride, least=heat.min())
            yield _picture("rollout", figure)
        if "gradcam" in self.parts:
            heat = grad_cam(self._model, variables, inputs, np.array([label]))[0]
            figure = pictures.heat_on_image(pixels, heat, stride=blocks[-1].stride, least=0.0)
            yield _picture("gradcam", figure)
        if "windows" in self.parts:
            shown = [layer for stage in by_stage(self._last.layers) for layer in stage[-2:]]
            maps = [(layer, received(layer)[0].mean(0)) for layer in shown]
            yield _picture("windows", pictures.windows(pixels, maps))
        if "heads" in self.parts:
            query = self._last.query
            for name, stage in _named("heads", self._last):
                heads = np.stack([received(layer, query=query)[0] for layer in stage])
                yield _picture(name, pictures.heads(heads))

    def of_model(self) -> Iterator[Picture]:
        """Yields the pictures of the model itself, after at least one image."""
        if "distance" in self.parts:
            means = [np.mean(images, axis=0) for images in zip(*self._distances, strict=True)]
            yield _picture("distance", pictures.distances(means))
        if "positions" in self.parts:
            embedding = position_embedding(self._model, self._params)
            assert embedding is not None  # else the model does not have this part
            yield _picture("positions", figures.draw_position_similarity(embedding))
        if "biases" in self.parts:
            for name, stage in _named("biases", self._last):
                found = (relative_bias_maps(layer) for layer in stage)
                maps = np.stack([each for each in found if each is not None])
                maps = maps - maps.mean((2, 3), keepdims=True)  # a constant no softmax sees
                yield _picture(name, figures.draw_bias_maps(maps))
        if "filters" in self.parts:
            kernels = patch_filters(self._model, self._params)
            assert kernels is not None  # as above
            yield _picture("filters", pictures.filters(kernels))


def write_page(
    path: str | os.PathLike[str], *, title: str, subtitle: str, sections: Sequence[Section]
) -> Path:
    """Writes sections as one HTML file with its pictures; returns `path`.

    Raises UserError where it cannot be written.
    """
    shown = [_shown(section) for section in sections]
    page = template("explain.html").render(title=title, subtitle=subtitle, sections=shown)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def _shown(section: Section) -> dict[str, Any]:
    """Returns the values of a section for the page's template."""
    parts = [
        {
            "part": part,
            "heading": heading,
            "text": text,
            "pictures": [
                (_title(picture.name), figures.png_uri(picture.data))
                for picture in section.pictures
                if picture.part == part
            ],
        }
        for part, (heading, text) in PARTS.items()
        if any(picture.part == part for picture in section.pictures)
    ]
    image = section.image
    of_image = image is not None
    return {
        "title": section.title,
        "text": section.text,
        "image": None if image is None else pictures.image_uri(image),
        "small": image is not None and max(image.shape) < pictures.SMALL,
        "classes": section.classes,
        "grid": [part for part in parts if of_image and part["part"] in GRID],
        "parts": [part for part in parts if not (of_image and part["part"] in GRID)],
        "folded": of_image,
    }


def _title(name: str) -> str:
    """Returns the title of a picture: "Stage 1" for "heads.stage_0"."""
    stage = name.partition(".stage_")[2]
    return f"Stage {int(stage) + 1}" if stage else name


def _picture(name: str, figure: Figure) -> Picture:
    return Picture(name, figures.png(figure))


def _named(part: str, attention: Attention) -> Iterator[tuple[str, Sequence[LayerAttention]]]:
    """Yields the picture's name and the layers of each stage."""
    stages = by_stage(attention.layers)
    for i, stage in enumerate(stages):
        yield (part if len(stages) == 1 else f"{part}.stage_{i}"), stage
