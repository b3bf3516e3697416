"""`vitswin evaluate --img-sizes, --flip`: probabilities averaged over image sizes and mirrors."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitswin_jax.cli.inputs import image_size
from vitswin_jax.cli.table import format_table
from vitswin_jax.nn.layers import pair

if TYPE_CHECKING:
    from vitswin_jax.evaluate.evaluation import Evaluation
    from vitswin_jax.weights.open import Pretrained


class Scale(NamedTuple):
    """The weights at one image size, and whether images are mirrored."""

    weights: Pretrained
    mirror: bool

    @property
    def name(self) -> str:
        """The name in a table."""
        height, width = pair(self.weights.model.img_size)
        return f"{height}x{width}{', mirrored' if self.mirror else ''}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of multi-scale evaluation."""
    parser.add_argument(
        "--img-sizes",
        type=lambda text: [image_size(size) for size in text.split(",")],
        metavar="N|HxW,...",
        help="Evaluate at each of these image sizes, with position tables resized, and average the "
        "probabilities (default: the size of the weights).",
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="Evaluate mirrored images too, and average the probabilities.",
    )


def scales_of(args: argparse.Namespace, pretrained: Pretrained) -> list[Scale]:
    """Returns the sizes to average over, in order; raises UserError if a size does not fit."""
    sized = [pretrained]
    if args.img_sizes is not None:
        sized = [pretrained.changed(img_size=size) for size in args.img_sizes]
    return [Scale(w, mirror) for w in sized for mirror in (False, True)[: 1 + args.flip]]


def summarize_each(
    scales: Sequence[Scale], logits: Sequence[np.ndarray], summarize: Callable[..., Evaluation]
) -> list[dict[str, Any]]:
    """Returns the scores of each scale, as plain data; none where there is one scale."""
    if len(scales) == 1:
        return []
    rows = []
    for scale, each in zip(scales, logits, strict=True):
        found = summarize(each)
        size = list(pair(scale.weights.model.img_size))
        scores = {"top1": found.top1, "top5": found.top5, "loss": found.loss}
        rows.append({"name": scale.name, "img_size": size, "mirror": scale.mirror, **scores})
    return rows


def as_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the lines that show the scores of each scale, which are averaged."""
    if not rows:
        return []
    table = [(row["name"], f"{100 * row['top1']:.2f} %", f"{row['loss']:.4f}") for row in rows]
    return ["", *format_table([("averaged over", "top-1", "loss"), *table], align="<>>")]
