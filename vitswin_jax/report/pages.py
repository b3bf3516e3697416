"""A run's report: one self-contained HTML file that opens without a network."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Float

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.goodput import read_hosts
from vitswin_jax.core.types import Params, Source, UserError, counted
from vitswin_jax.core.version import __version__
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.evaluate.evaluation import Evaluation
from vitswin_jax.evaluate.mistakes import worst_mistakes
from vitswin_jax.models.geometry import Geometry, HasGeometry, by_stage
from vitswin_jax.nn.scan import unstack_blocks
from vitswin_jax.report import curves, figures
from vitswin_jax.report.curves import Series
from vitswin_jax.report.page import percent, template
from vitswin_jax.report.runs import compare, pace, read_config, read_metrics

_CONFUSED_PAIRS = 12
_SMALL = 96  # pictures of fewer pixels a side are shown enlarged, with their pixels


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    model: nn.Module,
    params: Params,
    evaluation: Evaluation,
    source: Source,
    preprocess: Preprocess,
    workdir: str | os.PathLike[str] | None = None,
    command: str | None = None,
    origin: Mapping[str, Any] | None = None,
    compare_to: str | os.PathLike[str] | None = None,
    facts: Sequence[tuple[str, str]] = (),
) -> Path:
    """Writes the report of a model and its evaluation over all of `source`; returns `path`.

    `facts`, pairs of a name and a text, are what the run read, for the page's head. `origin` is
    what the run started from (`init_from`, `sha256`, `adapted`); `compare_to` is the
    folder of another run, to be shown beside that of `workdir`. From `workdir`, where it has them,
    come the curves (metrics.jsonl) and the configuration (config.json). `params` may be in loop or
    scan layout. Raises UserError where the file cannot be written or `evaluation` is not of
    `source`.
    """
    if len(evaluation.labels) != len(source):
        raise UserError(
            f"the evaluation has {len(evaluation.labels)} examples, {source.name} has "
            f"{len(source)}; a report needs the evaluation of the whole split."
        )
    params = unstack_blocks(params)
    series = {} if workdir is None else read_metrics(workdir)
    page = template("report.html").render(
        title=title,
        subtitle=f"{type(model).__name__} on {source.name}, {len(source):,} images",
        command=command,
        numbers=_numbers(evaluation, params),
        curves=[*curves.curves(series), *of_hosts(workdir)],
        facts=head(facts, series, workdir),
        config=[] if workdir is None else flatten_dict(read_config(workdir), sep=".").items(),
        **_confusion(evaluation),
        classes=evaluation.least_accurate(),
        mistakes=list(_mistakes(evaluation, source, preprocess)),
        errors=evaluation.errors,
        calibration_error=evaluation.calibration_error,
        reliability=figures.reliability(evaluation.calibration),
        positions=_positions(model, params),
        environment=environment(),
        origin=origin,
        **_comparison(workdir, compare_to),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def _numbers(evaluation: Evaluation, params: Params) -> list[tuple[str, str]]:
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return [
        ("test accuracy", percent(evaluation.top1)),
        ("errors", f"{evaluation.errors:,} of {len(evaluation.labels):,}"),
        *([("top-5", percent(evaluation.top5))] if len(evaluation.class_names) > 5 else []),
        *_mean_average_precision(evaluation),
        ("loss", f"{evaluation.loss:.4f}"),
        ("calibration error", percent(evaluation.calibration_error)),
        ("parameters", f"{count:,}"),
    ]


def _comparison(
    workdir: str | os.PathLike[str] | None, other: str | os.PathLike[str] | None
) -> dict[str, Any]:
    if workdir is None or other is None:
        return {"comparison": None, "comparison_figure": None}
    comparison = compare(workdir, other)
    return {
        "comparison": comparison,
        "comparison_figure": curves.two_runs(*comparison.accuracies),
    }


def _mean_average_precision(evaluation: Evaluation) -> list[tuple[str, str]]:
    value = evaluation.mean_average_precision
    return [] if value is None else [("mean average precision", percent(value))]


def _confusion(evaluation: Evaluation) -> dict[str, Any]:
    matrix, names = evaluation.confusion, evaluation.class_names
    small = len(names) <= figures.NAMED  # with more, the matrix is a picture
    return {
        "class_names": names,
        "confusion_rows": _confusion_rows(matrix, names) if small else None,
        "confusion_picture": None if small else figures.confusion(matrix),
        "confused": evaluation.most_confused(at_most=_CONFUSED_PAIRS),
    }


def _confusion_rows(matrix: np.ndarray, names: tuple[str, ...]) -> list[dict[str, Any]]:
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    rows = []
    for i, name in enumerate(names):
        cells = []
        for j, predicted in enumerate(names):
            strength = math.sqrt(share[i, j])  # so that a few errors among many show
            full = np.array([51, 78, 104] if i == j else [194, 65, 12])
            rgb = (247 + strength * (full - 247)).round().astype(int)
            cells.append(
                {
                    "count": int(matrix[i, j]),
                    "predicted": predicted,
                    "color": ", ".join(map(str, rgb)),
                    "ink": "#fff" if strength > 0.6 else "#1f2933",
                }
            )
        rows.append({"name": name, "cells": cells})
    return rows


def _mistakes(
    evaluation: Evaluation, source: Source, preprocess: Preprocess
) -> Iterator[dict[str, Any]]:
    for mistake in worst_mistakes(evaluation, source, preprocess):
        shown = {
            "picture": figures.picture(mistake.image),
            "small": max(mistake.image.shape) < _SMALL,
        }
        yield {**vars(mistake), **shown}


def _positions(model: nn.Module, params: Params) -> dict[str, Any] | None:
    """Returns pictures of the learned tables of positions, for models that have them."""
    if not isinstance(model, HasGeometry):
        return None
    geometry = model.geometry()
    if geometry.positions is not None and "pos_embed" in params:
        embedding = np.asarray(geometry.positions(params))
        return {
            "title": "Position embeddings",
            "text": "Each small map shows how similar the embedding of one patch, at the map's "
            "place in the grid, is to those of all patches: what the model has learned about "
            "neighbourhood (ViT, figure 7 centre).",
            "figures": [(None, figures.position_similarity(embedding))],
        }
    if stages := _bias_maps(geometry, params):
        return {
            "title": "Relative position biases",
            "text": "What each head adds to the attention of a query, at the centre, to the keys "
            "around it in its window: red draws attention, blue turns it away. Each block has its "
            "own scale.",
            "figures": [(f"Stage {i}", figures.bias_maps(maps)) for i, maps in enumerate(stages)],
        }
    return None


def _bias_maps(
    geometry: Geometry, params: Params
) -> list[Float[np.ndarray, "blocks heads _ _"]] | None:
    """Returns the bias tables of each stage as maps, or None if a block has no table."""
    leaves, stages = flatten_dict(params, sep="/"), []
    for blocks in by_stage(geometry.blocks):
        names = [f"{b.name}/{geometry.attention}/relative_position_bias_table" for b in blocks]
        if not leaves.keys() >= set(names):
            return None
        # Rows run over the query's place less the key's. Reversed, a map shows keys in their place.
        tables = np.stack([leaves[name] for name in names])[:, ::-1]
        height, width = blocks[0].window
        stages.append(
            rearrange(tables, "b (h w) heads -> b heads h w", h=2 * height - 1, w=2 * width - 1)
        )
    return stages


def of_hosts(workdir: str | os.PathLike[str] | None) -> list[curves.Panel]:
    """Returns drawings of the hosts of a run that has several."""
    return [] if workdir is None else curves.hosts(read_hosts(Path(workdir)))


def head(
    facts: Sequence[tuple[str, str]],
    series: Mapping[str, Series],
    workdir: str | os.PathLike[str] | None,
) -> list[tuple[str, str]]:
    """Returns the facts in a page's head about a run: data, date, duration, speed."""
    if not facts or workdir is None:
        return []
    date = time.strftime("%Y-%m-%d %H:%M %Z")
    versions = f"vitswin_jax {__version__}, jax {jax.__version__}"
    return [*facts, *pace(series, workdir), ("date", date), ("versions", versions)]


def environment() -> list[tuple[str, str]]:
    """Returns the versions that a page states."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return [
        ("vitswin_jax", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("devices", f"{counted(jax.device_count(), 'device')} ({jax.devices()[0].device_kind})"),
        *((package, metadata.version(package)) for package in packages),
    ]
