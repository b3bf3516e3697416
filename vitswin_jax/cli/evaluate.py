"""`vitswin evaluate`: how good weights are, exactly, over a whole split."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitswin_jax.cli.table import format_table
from vitswin_jax.types import UserError

if TYPE_CHECKING:
    from vitswin_jax.analysis.evaluate import Evaluation
    from vitswin_jax.pretrained import Metadata
    from vitswin_jax.types import Source

_SHOWN_CLASSES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="a run's workdir, a weights file or a published name"
    )
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        nargs="?",
        help="digits, a folder, a table.csv, shards.tar, hf:NAME, a mixture or a TFDS name, as "
        "config.data.dataset (default: what the weights were trained on)",
    )
    parser.add_argument(
        "--split", help="which part of it, such as test[:500] (default: the run's, else test)"
    )
    parser.add_argument("--model", metavar="NAME", help="the variant, where the file is unclear")
    parser.add_argument("--data-dir", metavar="DIR", help="where TFDS keeps its datasets")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that load images"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="the report (default: report.html in the workdir)"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the scores and writes the report."""
    from vitswin_jax.analysis.evaluate import make_predict, predict_dataset, summarize
    from vitswin_jax.data.pipeline import make_eval_batches
    from vitswin_jax.pretrained import default_preprocess, load_metadata, load_pretrained

    metadata = load_metadata(args.weights, args.model)
    model, variables = load_pretrained(args.weights, args.model)
    source = open_evaluated(args, metadata)
    preprocess = metadata.preprocess or default_preprocess(metadata.name, metadata.fields)
    columns = match_classes(metadata.class_names, source)
    batches = make_eval_batches(
        source, batch_size=args.batch_size, preprocess=preprocess, workers=args.workers
    )
    logits, labels = predict_dataset(make_predict(model, variables["params"], preprocess), batches)
    logits = logits if columns is None else logits[:, columns]
    evaluation = summarize(logits, labels, source.class_names)
    print_scores(evaluation, title=f"{source.name}, {len(source):,} images")
    if "expected_top1" in (known := metadata.provenance):
        top1, by = known["expected_top1"], known["expected_top1_by"]
        print(f"\npublished: top-1 {top1:.2f} % on ImageNet-1k's validation set ({by})")
    _write_report(
        args,
        metadata=metadata,
        model=model,
        params=variables["params"],
        evaluation=evaluation,
        source=source,
        preprocess=preprocess,
    )
    return 0


def _write_report(args: argparse.Namespace, *, metadata: Metadata, **report: Any) -> None:
    weights = Path(args.weights)
    workdir = weights if weights.is_dir() else None
    if args.output is None and workdir is None:
        return
    from vitswin_jax.analysis.report import write_report

    path = write_report(
        args.output or workdir / "report.html",
        title=weights.resolve().name,
        workdir=workdir,
        command=metadata.provenance.get("command"),
        **report,
    )
    print(f"\nreport: {path}")


def open_evaluated(args: argparse.Namespace, metadata: Metadata) -> Source:
    """Opens what is asked for; what is not said is as it was in training, so that no training
    image is mistaken for a test image.
    """
    from vitswin_jax.data.sources import open_source

    provenance = metadata.provenance
    dataset = args.dataset or provenance.get("dataset")
    if dataset is None:
        raise UserError(
            f"{args.weights}: does not say what it was trained on; name a DATASET to evaluate on."
        )
    trained = provenance if dataset == provenance.get("dataset") else {}
    division = {key: trained[key] for key in ("holdout", "seed") if key in trained}
    return open_source(
        dataset,
        split=args.split or trained.get("test_split", "test"),
        data_dir=args.data_dir or trained.get("data_dir"),
        **division,
    )


def match_classes(names: Sequence[str] | None, source: Source) -> list[int] | None:
    """Returns the model's output for each class of a dataset, or None where they are in order.

    Raises UserError where the two name different classes. `names` None: nobody knows.
    """
    if names is None or tuple(names) == tuple(source.class_names):
        return None
    if differing := sorted(set(names) ^ set(source.class_names)):
        raise UserError(
            f"{source.name}: has {len(source.class_names)} classes, the weights know {len(names)}; "
            f"not in both: {', '.join(differing[:8])}{', ...' if differing[8:] else ''}."
        )
    return [names.index(name) for name in source.class_names]


def print_scores(evaluation: Evaluation, *, title: str) -> None:
    """Prints what `summarize` found; of many classes only the least accurate."""
    print(title)
    scores = [("top-1", f"{100 * evaluation.top1:.2f} %", f"{evaluation.errors:,} errors")]
    if len(evaluation.class_names) > 5:
        scores.append(("top-5", f"{100 * evaluation.top5:.2f} %", ""))
    if evaluation.mean_average_precision is not None:
        value = f"{100 * evaluation.mean_average_precision:.2f} %"
        scores.append(("mean average precision", value, ""))
    scores.append(("loss", f"{evaluation.loss:.4f}", ""))
    scores.append(("calibration error", f"{100 * evaluation.calibration_error:.2f} %", ""))
    print(format_table(scores, align="<><"))
    ordered = evaluation.least_accurate()
    rows = [
        (c.name, f"{c.examples}", _percent(c.accuracy), _percent(c.precision))
        for c in ordered[:_SHOWN_CLASSES]
    ]
    print()
    print(format_table([("class", "images", "accuracy", "precision"), *rows], align="<>>>"))
    if len(ordered) > _SHOWN_CLASSES:
        print(f"the least accurate {_SHOWN_CLASSES} of {len(ordered)} classes")
    if pairs := evaluation.most_confused(at_most=5):
        print("\nmost confused")
        table = [(f"{count} ×", true, "named", named) for true, named, count in pairs]
        print(format_table(table, align="><<<"))


def _percent(fraction: float) -> str:
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f} %"
