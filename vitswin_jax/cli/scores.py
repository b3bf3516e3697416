"""The scores of `vitswin evaluate`: what is printed, the page and the pictures."""

from __future__ import annotations

import argparse
import hashlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from vitswin_jax.cli.table import format_table
from vitswin_jax.core.atomic import check_writable, writing
from vitswin_jax.core.store import is_url
from vitswin_jax.core.terminal import say
from vitswin_jax.core.types import UserError
from vitswin_jax.plan.variant_costs import variant_costs

if TYPE_CHECKING:
    from vitswin_jax.core.types import Source
    from vitswin_jax.data.augment.transforms import Preprocess
    from vitswin_jax.evaluate.evaluation import Evaluation
    from vitswin_jax.weights.open import Pretrained

_SHOWN_CLASSES = 20


def print_scores(evaluation: Evaluation, *, title: str, note: str | None) -> None:
    """Prints what `summarize` found; of many classes only the least accurate."""
    say(title, *([] if note is None else [note]))
    scores = [("top-1", f"{100 * evaluation.top1:.2f} %", f"{evaluation.errors:,} errors")]
    if len(evaluation.class_names) > 5:
        scores.append(("top-5", f"{100 * evaluation.top5:.2f} %", ""))
    if evaluation.mean_average_precision is not None:
        value = f"{100 * evaluation.mean_average_precision:.2f} %"
        scores.append(("mean average precision", value, ""))
    scores.append(("loss", f"{evaluation.loss:.4f}", ""))
    scores.append(("calibration error", f"{100 * evaluation.calibration_error:.2f} %", ""))
    say(*format_table(scores, align="<><"))
    ordered = evaluation.least_accurate()
    rows = [
        (c.name, f"{c.examples}", _percent(c.accuracy), _percent(c.precision))
        for c in ordered[:_SHOWN_CLASSES]
    ]
    table = [("class", "images", "accuracy", "precision"), *rows]
    say("", *format_table(table, align="<>>>"))
    if len(ordered) > _SHOWN_CLASSES:
        say(f"the least accurate {_SHOWN_CLASSES} of {len(ordered)} classes")
    if pairs := evaluation.most_confused(at_most=5):
        table = [(f"{count} ×", true, "named", named) for true, named, count in pairs]
        say("", "most confused", *format_table(table, align="><<<"))


def _percent(fraction: float) -> str:
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


def check_outputs(args: argparse.Namespace, page: Path | None) -> None:
    """Raises UserError for what cannot be written, before the work."""
    if page is not None:
        check_writable(page)
    if args.figures is not None:
        with writing(args.figures):
            Path(args.figures).mkdir(parents=True, exist_ok=True)
        check_writable(Path(args.figures) / "mistakes.png")


def verdict_of(evaluation: Evaluation, pretrained: Pretrained, *, judged: bool) -> list[str]:
    """Returns lines that compare the accuracy with the published one; none without one.

    It is `judged` if the images may be those with which it was published.
    """
    from vitswin_jax.evaluate import verdict
    from vitswin_jax.weights.published import find_published

    known, preprocess = pretrained.provenance, pretrained.preprocess
    if "expected_top1" not in known:
        return []
    top1, by = known["expected_top1"], known["expected_top1_by"]
    lines = [f"published: top-1 {top1:.2f} % on ImageNet-1k's validation set ({by})"]
    like = len(evaluation.class_names) == verdict.CLASSES
    if not (judged and like and len(evaluation.labels) <= verdict.IMAGES):
        return lines
    row = find_published(known["published"]) if "published" in known else None
    theirs = None
    if row is not None:
        size = variant_costs()[row.variant].img_size
        theirs = type(preprocess)(img_size=size, **row.images)
    found = verdict.compare_with_published(
        100 * evaluation.top1, top1, len(evaluation.labels), used=preprocess, theirs=theirs
    )
    return [*lines, found]


def write_figures(
    folder: Path, evaluation: Evaluation, source: Source, preprocess: Preprocess
) -> list[Path]:
    """Draws the reliability, the confusion and the worst mistakes; returns the paths."""
    from vitswin_jax.evaluate.mistakes import worst_mistakes
    from vitswin_jax.report import figures
    from vitswin_jax.report.sheet import Picture, thumbnail, write_sheet

    pictures = [
        Picture(
            thumbnail(mistake.image),
            (
                f"{100 * mistake.predicted_probability:.1f} %  {mistake.predicted}",
                f"is {100 * mistake.true_probability:.1f} %  {mistake.true}",
            ),
        )
        for mistake in worst_mistakes(evaluation, source, preprocess)
    ]
    paths = [
        figures.write_png(
            folder / "reliability.png", figures.draw_reliability(evaluation.calibration)
        ),
        figures.write_png(
            folder / "confusion.png",
            figures.draw_confusion(evaluation.confusion, evaluation.class_names),
        ),
    ]
    return paths + ([write_sheet(folder / "mistakes.png", pictures)] if pictures else [])


def page_of(
    args: argparse.Namespace, source: Source, workdir: Path | None, which: str
) -> Path | None:
    """Returns the path of the page: for a run, beside its report, named after the dataset.

    Raises UserError for the run's own report, whose numbers are those of its test split.
    """
    from vitswin_jax.train.keep.workdir import REPORT

    if workdir is None:
        return None if args.output is None else Path(args.output)
    if args.output is not None:
        if Path(args.output).resolve() == (workdir / REPORT).resolve():
            raise UserError(f"--output={args.output}: is the run's own report; give another name.")
        return Path(args.output)
    place, _, split = source.name.rpartition(":")
    parts = [which, place.rstrip("/").rpartition("/")[2], split, "real" if args.real else ""]
    if "/" in place:  # another folder may be called so
        parts.append(hashlib.sha256(str(Path(place).resolve()).encode()).hexdigest()[:6])
    name = re.sub(r"[^\w.]+", "-", "-".join(filter(None, parts)))
    return workdir / f"evaluation-{name[:100]}.html"


def write_page(
    args: argparse.Namespace,
    page: Path,
    pretrained: Pretrained,
    *,
    evaluation: Evaluation,
    source: Source,
    workdir: Path | None,
) -> Path:
    """Writes the page of an evaluation; returns its path."""
    from vitswin_jax.report.pages import write_report
    from vitswin_jax.weights.stored import send_page

    write_report(
        page,
        title=f"{Path(args.weights).name} on {source.name}",
        model=pretrained.model,
        params=pretrained.variables["params"],
        evaluation=evaluation,
        source=source,
        preprocess=pretrained.preprocess,
        workdir=workdir,
        command=pretrained.provenance.get("command"),
    )
    if args.output is None and is_url(args.weights):
        send_page(args.weights.rpartition("@")[0] or args.weights, page)
    return page
