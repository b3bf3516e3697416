"""The report of distillation without labels: where the model looks, and how that has come about.

Each evaluation leaves its attention maps in the workdir, so that the page has those before it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vitswin_jax.core.atomic import replacing, writing
from vitswin_jax.core.types import Batch, Params
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.data.channels import as_rgb
from vitswin_jax.explain.attention import attention_maps, on_image, received
from vitswin_jax.models.geometry import geometry_of
from vitswin_jax.models.unlabelled import encoder_of
from vitswin_jax.report import figures
from vitswin_jax.report.reconstruction import SMALL, write_unlabelled_report

ATTENTION = "attention"
"""The folder of a workdir that has a picture of the maps of each evaluation: `STEP.png`."""
_IMAGES = 6
_STAGES = 6  # evaluations that a page shows, the first and the last among them
_PICTURE = re.compile(r"(\d+)\.png")


def last_attention(
    model: nn.Module,
    params: Params,
    images: UInt8[np.ndarray, "b h w c"],
    preprocess: Preprocess,
) -> Float[np.ndarray, "b h w"]:
    """Returns how much attention each place is paid in the last block, from 0 to each map's most.

    The query is the class token if the features are its output, and else the mean over all places;
    the heads are averaged.
    """
    encoder, own = encoder_of(model, params)
    found = attention_maps(encoder, {"params": own}, preprocess.normalize(images))
    layer = found.layers[-1]
    maps = received(layer, query=found.query).mean(1)
    size = images.shape[1:3]
    planes = [on_image(each, stride=layer.stride, size=size) for each in maps]
    return np.stack([plane / max(float(plane.max()), 1e-12) for plane in planes])


def row_of_maps(maps: Float[np.ndarray, "b h w"]) -> UInt8[np.ndarray, "h bw 3"]:
    """Returns maps side by side, in colours."""
    colours = matplotlib.colormaps["inferno"](maps)[..., :3]
    return (np.concatenate(list(colours), axis=1) * 255).round().astype(np.uint8)


def chosen(steps: list[int]) -> list[int]:
    """Returns the steps that a page shows: evenly spaced, with the first and the last."""
    places = np.linspace(0, len(steps) - 1, min(_STAGES, len(steps))).round().astype(int)
    return [sorted(steps)[place] for place in places]


def write_attention_report(
    path: str | os.PathLike[str],
    *,
    model: nn.Module,
    params: Params,
    batches: Iterable[Batch],
    preprocess: Preprocess,
    workdir: str | os.PathLike[str],
    step: int,
    **page: Any,
) -> Path:
    """Writes the report of a model that features were learned by (`write_unlabelled_report`).

    The first of the evaluation `batches` has the images that are shown. Their attention maps, if
    the model has attention, are written to the workdir's folder `attention`, and the page has some
    of those that are there. Returns `path`.
    """
    batch = next(iter(batches))
    images = np.asarray(batch["image"])[:_IMAGES][np.asarray(batch["mask"][:_IMAGES]) > 0]
    folder = Path(workdir) / ATTENTION
    with writing(folder):
        folder.mkdir(exist_ok=True)
    if geometry_of(encoder_of(model, params)[0]).attention is not None:
        maps = row_of_maps(last_attention(model, jax.device_get(params), images, preprocess))
        with replacing(folder / f"{step}.png") as temporary:
            Image.fromarray(maps).save(temporary, "PNG")
    found = (_PICTURE.fullmatch(file.name) for file in folder.iterdir())
    known = [int(match[1]) for match in found if match and int(match[1]) <= step]
    rows = [{"name": "images", "picture": figures.picture(_side_by_side(images))}]
    for each in chosen(known):
        data = (folder / f"{each}.png").read_bytes()
        rows.append({"name": f"step {each:,}", "picture": figures.png_uri(data)})
    shown = {"rows": rows, "small": max(images.shape[1:3]) < SMALL}
    return write_unlabelled_report(
        path,
        "attention.html",
        model=model,
        params=params,
        workdir=workdir,
        step=step,
        shown=shown,
        **page,
    )


def _side_by_side(images: UInt8[np.ndarray, "b h w c"]) -> UInt8[np.ndarray, "h bw 3"]:
    return np.concatenate([as_rgb(image) for image in images], axis=1)
