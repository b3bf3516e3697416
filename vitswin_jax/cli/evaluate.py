"""`vitswin evaluate`: accuracy, loss and calibration of weights over a whole split."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitswin_jax.cli import probe, scores
from vitswin_jax.cli.inputs import (
    DATA_DIR_HELP,
    MODEL_HELP,
    OUTSIDE_HELP,
    SPLIT_HELP,
    add_dtype,
    add_weights,
    open_weights,
)
from vitswin_jax.cli.scales import Scale, as_table, scales_of, summarize_each
from vitswin_jax.cli.scales import add_arguments as add_scales
from vitswin_jax.core.terminal import say, say_json
from vitswin_jax.core.types import UserError

if TYPE_CHECKING:
    from flax import linen as nn

    from vitswin_jax.core.types import Source
    from vitswin_jax.evaluate.evaluation import Evaluation
    from vitswin_jax.weights.metadata import Metadata
    from vitswin_jax.weights.open import Pretrained


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
    add_dtype(parser)
    add_scales(parser)
    probe.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the scores and writes the report, or prints what probes of the features find."""
    from vitswin_jax.evaluate.evaluation import make_features

    pretrained = open_weights(args, *filter(None, [args.dataset]))
    scales = scales_of(args, pretrained)
    if len(scales) == 1:
        pretrained = scales[0].weights  # at the one size that was asked for
    source = open_evaluated(args, pretrained.metadata)
    if not probe.is_wanted(args):
        _score(args, pretrained, scales, source)
        return 0
    if args.img_sizes or args.flip:
        raise UserError(
            "--img-sizes and --flip average the probabilities of a head; leave them out for probes."
        )
    train = open_evaluated(args, pretrained.metadata, train=True)
    read = functools.partial(_make_reader(args, make_features), scale=Scale(pretrained, False))
    probe.measure(args, train=train, test=source, read_features=read)
    return 0


def _score(
    args: argparse.Namespace, pretrained: Pretrained, scales: Sequence[Scale], source: Source
) -> None:
    """Prints the scores of the head, and writes the page and the figures."""
    from vitswin_jax.evaluate.classes import match_classes, reassess
    from vitswin_jax.evaluate.evaluation import likeliest_of_several, make_predict, summarize
    from vitswin_jax.evaluate.scales import average_logits
    from vitswin_jax.weights.runs import workdir_of
    from vitswin_jax.weights.stored import local_weights

    _check_scores(args, pretrained.model)
    if args.real is not None:
        source = reassess(source, args.real)
    match = match_classes(pretrained.metadata.class_names, pretrained.model.num_classes, source)
    workdir, which = workdir_of(local_weights(args.weights)) or (None, "")
    page = scores.page_of(args, source, workdir, which)
    scores.check_outputs(args, page)
    read = _make_reader(args, make_predict)
    found = [read(source, scale) for scale in scales]
    each, labels = [match.select(logits) for logits, _ in found], found[0][1]

    def score(logits: np.ndarray) -> Evaluation:
        truth = labels if args.real is None else likeliest_of_several(logits, labels)
        return summarize(logits, truth, match.class_names)

    evaluation = score(average_logits(each, several=args.real is None and labels.ndim == 2))
    averaged = summarize_each(scales, each, score)
    verdict = scores.verdict_of(
        evaluation, pretrained, judged=match.validation and len(scales) == 1
    )
    if args.json:
        facts = {"dataset": source.name, "scored": match.note, "published": verdict or None}
        say_json(facts | evaluation.as_json() | ({"averaged": averaged} if averaged else {}))
    else:
        scores.print_scores(
            evaluation, title=f"{source.name}, {len(source):,} images", note=match.note
        )
        say(*as_table(averaged), *(["", *verdict] if verdict else []))
    paths = []
    if page is not None:
        shown: dict[str, Any] = {"evaluation": evaluation, "source": source, "workdir": workdir}
        paths.append(f"report: {scores.write_page(args, page, pretrained, **shown)}")
    if args.figures is not None:
        written = scores.write_figures(
            Path(args.figures), evaluation, source, pretrained.preprocess
        )
        paths += [f"figure: {path}" for path in written]
    if paths and not args.json:
        say("", *paths)


def _make_reader(args: argparse.Namespace, make: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function from a split and a `Scale` to what a model gives for it, and the labels.

    `make` compiles a function from batches to logits or features (n, k).
    """
    import jax

    from vitswin_jax.data.pipeline import make_eval_batches, workers_for
    from vitswin_jax.evaluate.evaluation import predict_dataset
    from vitswin_jax.evaluate.scales import mirrored

    @functools.cache  # plain and mirrored images are the same program's
    def compiled(weights: Pretrained) -> Callable[..., Any]:
        return make(weights.model, weights.variables["params"], weights.preprocess)

    def read(source: Source, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
        weights, mirror = scale
        batches = make_eval_batches(
            source,
            batch_size=args.batch_size,
            preprocess=weights.preprocess,
            workers=workers_for(args.workers, platform=jax.default_backend(), records=len(source)),
        )
        return predict_dataset(compiled(weights), mirrored(batches) if mirror else batches)

    return read


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
