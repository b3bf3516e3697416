"""`vitswin evaluate`: accuracy, loss and calibration of weights over a whole split."""

from __future__ import annotations

import argparse
import functools
import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitswin_jax.cli import probe
from vitswin_jax.cli.inputs import (
    DATA_DIR_HELP,
    MODEL_HELP,
    OUTSIDE_HELP,
    SPLIT_HELP,
    add_weights,
    open_weights,
)
from vitswin_jax.cli.scales import Scale, as_table, scales_of, summarize_each
from vitswin_jax.cli.scales import add_arguments as add_scales
from vitswin_jax.cli.table import format_table
from vitswin_jax.core.atomic import check_writable, writing
from vitswin_jax.core.terminal import say, say_json
from vitswin_jax.core.types import UserError
from vitswin_jax.plan.variant_costs import variant_costs

if TYPE_CHECKING:
    from flax import linen as nn

    from vitswin_jax.core.types import Source
    from vitswin_jax.data.augment.transforms import Preprocess
    from vitswin_jax.evaluate.evaluation import Evaluation
    from vitswin_jax.weights.metadata import Metadata
    from vitswin_jax.weights.open import Pretrained

_SHOWN_CLASSES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    add_weights(parser)
    add = parser.add_argument
    add(
        "dataset",
        metavar="DATASET",
        nargs="?",
        help="Evaluate on this dataset: digits, a folder, a table.csv, shards.tar, hf:NAME, a "
        "mixture or a TFDS name (default: the dataset of the training).",
    )
    add("--split", help=SPLIT_HELP)
    add("--model", metavar="NAME", help=MODEL_HELP)
    add("--data-dir", metavar="DIR", help=DATA_DIR_HELP)
    add("--outside-files", action="store_true", help=OUTSIDE_HELP)
    add(
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="Compute N images at once (default: 64).",
    )
    add(
        "--workers",
        type=int,
        default=-1,
        metavar="N",
        help="Load images in N processes, or for 0 in threads of this one (default: as "
        "data.workers of a run).",
    )
    add(
        "--output",
        metavar="FILE",
        help="Write the page to FILE (default of a run: evaluation-DATASET.html in its workdir).",
    )
    add(
        "--figures",
        metavar="DIR",
        help="Write reliability.png, confusion.png and mistakes.png into this folder.",
    )
    add("--json", action="store_true", help="Print the scores as one JSON object.")
    add(
        "--real",
        metavar="FILE",
        help="Score ImageNet's images by the labels of ReaL's real.json.",
    )
    add_scales(parser)
    probe.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the scores and writes the report, or prints what probes of the features find."""
    import jax

    from vitswin_jax.data.pipeline import make_eval_batches, workers_for
    from vitswin_jax.evaluate.classes import match_classes, reassess
    from vitswin_jax.evaluate.evaluation import (
        likeliest_of_several,
        make_features,
        make_predict,
        predict_dataset,
        summarize,
    )
    from vitswin_jax.evaluate.scales import average_logits, mirrored
    from vitswin_jax.weights.runs import workdir_of

    pretrained = open_weights(args, *filter(None, [args.dataset]))
    scales = scales_of(args, pretrained)
    if len(scales) == 1:
        pretrained = scales[0].weights  # at the one size that was asked for
    model, metadata, preprocess = pretrained.model, pretrained.metadata, pretrained.preprocess
    source = open_evaluated(args, metadata)

    @functools.cache  # plain and mirrored images are the same program's
    def compiled(make: Callable[..., Any], weights: Pretrained) -> Callable[..., Any]:
        return make(weights.model, weights.variables["params"], weights.preprocess)

    def read(
        source: Source, make: Callable[..., Any], scale: Scale | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        weights, mirror = scale or (pretrained, False)
        batches = make_eval_batches(
            source,
            batch_size=args.batch_size,
            preprocess=weights.preprocess,
            workers=workers_for(args.workers, platform=jax.default_backend(), records=len(source)),
        )
        return predict_dataset(compiled(make, weights), mirrored(batches) if mirror else batches)

    if probe.is_wanted(args):
        if args.img_sizes or args.flip:
            raise UserError(
                "--img-sizes and --flip average the probabilities of a head; leave "
                "them out for probes."
            )
        train = open_evaluated(args, metadata, train=True)
        read_features = functools.partial(read, make=make_features)
        probe.measure(args, train=train, test=source, read_features=read_features)
        return 0
    _check_scores(args, model)
    if args.real is not None:
        source = reassess(source, args.real)
    match = match_classes(metadata.class_names, model.num_classes, source)
    workdir, which = workdir_of(args.weights) or (None, "")
    output = _page_of(args, source, workdir, which)
    _check_outputs(args, output)
    found = [read(source, make_predict, scale) for scale in scales]
    each, labels = [match.select(logits) for logits, _ in found], found[0][1]

    def score(logits: np.ndarray) -> Evaluation:
        truth = labels if args.real is None else likeliest_of_several(logits, labels)
        return summarize(logits, truth, match.class_names)

    evaluation = score(average_logits(each, several=args.real is None and labels.ndim == 2))
    averaged = summarize_each(scales, each, score)
    verdict = _verdict(evaluation, pretrained, judged=match.validation and len(scales) == 1)
    if args.json:
        facts = {"dataset": source.name, "scored": match.note, "published": verdict or None}
        say_json(facts | evaluation.as_json() | ({"averaged": averaged} if averaged else {}))
    else:
        print_scores(evaluation, title=f"{source.name}, {len(source):,} images", note=match.note)
        say(*as_table(averaged), *(["", *verdict] if verdict else []))
    written: dict[str, Any] = {"evaluation": evaluation, "source": source, "preprocess": preprocess}
    report = (
        None
        if output is None
        else _write_report(args, output, pretrained, workdir=workdir, **written)
    )
    paths = [] if report is None else [f"report: {report}"]
    paths += [f"figure: {path}" for path in _write_figures(args, **written)]
    if paths and not args.json:
        say("", *paths)
    return 0


def _check_scores(args: argparse.Namespace, model: nn.Module) -> None:
    """Raises UserError where scores of the head are asked for that there cannot be."""
    if args.train_split:
        raise UserError(
            "--train-split needs --knn, --linear-probe or --few-shot, which learn from it; add one."
        )
    if not model.num_classes:
        raise UserError(
            f"{args.weights}: the model has no head; --knn, --linear-probe and --few-shot measure "
            "its features."
        )


def _check_outputs(args: argparse.Namespace, page: Path | None) -> None:
    """Raises UserError for what cannot be written, before the work."""
    if page is not None:
        check_writable(page)
    if args.figures is not None:
        with writing(args.figures):
            Path(args.figures).mkdir(parents=True, exist_ok=True)
        check_writable(Path(args.figures) / "mistakes.png")


def _verdict(evaluation: Evaluation, pretrained: Pretrained, *, judged: bool) -> list[str]:
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


def _write_figures(
    args: argparse.Namespace, *, evaluation: Evaluation, source: Source, preprocess: Preprocess
) -> list[Path]:
    if args.figures is None:
        return []
    from vitswin_jax.evaluate.mistakes import worst_mistakes
    from vitswin_jax.report import figures
    from vitswin_jax.report.sheet import Picture, thumbnail, write_sheet

    folder = Path(args.figures)
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


def _page_of(
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


def _write_report(
    args: argparse.Namespace,
    output: Path,
    pretrained: Pretrained,
    *,
    source: Source,
    **report: Any,
) -> Path:
    from vitswin_jax.report.pages import write_report

    return write_report(
        output,
        title=f"{Path(args.weights).name} on {source.name}",
        model=pretrained.model,
        params=pretrained.variables["params"],
        command=pretrained.provenance.get("command"),
        source=source,
        **report,
    )


def open_evaluated(args: argparse.Namespace, metadata: Metadata, *, train: bool = False) -> Source:
    """Opens the split to evaluate or, with `train`, the one that probes learn from.

    Options that are not given are as they were in training, so that no training image is mistaken
    for a test image.
    """
    from vitswin_jax.data.sources.open import open_source

    provenance = metadata.provenance
    dataset = args.dataset or provenance.get("dataset")
    if dataset is None:
        raise UserError(
            f"{args.weights}: does not state what it was trained on; name a DATASET to evaluate on."
        )
    trained = provenance if dataset == provenance.get("dataset") else {}
    division = {key: trained[key] for key in ("holdout", "seed") if key in trained}
    if train:
        split = args.train_split or trained.get("train_split", "train")
    else:
        split = args.split or trained.get("test_split", "test")
    data_dir = args.data_dir or trained.get("data_dir")
    where = {"data_dir": data_dir, "outside_files": args.outside_files}
    return open_source(dataset, split=split, **where, **division)


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
