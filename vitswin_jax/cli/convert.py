"""`vitswin convert`: weights from any source to any format that has their family."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

from vitswin_jax.cli.inputs import IMG_SIZE_HELP, MODEL_HELP, image_size
from vitswin_jax.core.terminal import say
from vitswin_jax.core.types import UserError

FORMATS = ("native", "google", "timm", "microsoft", "huggingface", "torchvision")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    add = parser.add_argument
    add(
        "source",
        metavar="SRC",
        help="Take the weights from a run's workdir, a file of any source or a published name.",
    )
    add(
        "target",
        metavar="DST",
        help="Write the converted weights to this file, or folder (for timm and huggingface).",
    )
    add("--to", choices=FORMATS, default="native", help="Write this format (default: native).")
    add("--model", metavar="NAME", help=MODEL_HELP)
    add("--img-size", type=image_size, metavar="N|HxW", help=IMG_SIZE_HELP)
    add(
        "--num-classes",
        type=int,
        metavar="N",
        help="Give the model N classes: 0 removes the head, another number than the file's makes a "
        "new head of zeros.",
    )
    add(
        "--in-chans",
        type=int,
        metavar="N",
        help="Take images of N channels: the patch kernel is summed (1) or repeated and scaled.",
    )
    add(
        "--verify",
        action="store_true",
        help="Load the written file and print the largest difference of the logits.",
    )


def run(args: argparse.Namespace) -> int:
    """Writes DST and says what it holds; 1 where --verify finds other logits."""
    from vitswin_jax.weights.open import open_pretrained
    from vitswin_jax.weights.parity import compare_written
    from vitswin_jax.weights.runs import weights_digest
    from vitswin_jax.weights.save import save_pretrained

    logging.getLogger("vitswin_jax").setLevel(logging.INFO)
    pretrained = open_pretrained(
        args.source,
        args.model,
        num_classes=args.num_classes,
        img_size=args.img_size,
        **({} if args.in_chans is None else {"in_chans": args.in_chans}),
    )
    source, target = pretrained.file, Path(args.target)
    if target.exists() and target.resolve() == source.resolve():
        raise UserError(f"{target}: is the file to be converted; give another name.")
    metadata = dataclasses.replace(
        pretrained.metadata,
        preprocess=pretrained.preprocess,
        provenance={**pretrained.provenance, "sha256": weights_digest(source)},
    )
    path = save_pretrained(
        target, pretrained.model, pretrained.variables, format=args.to, metadata=metadata
    )
    say(f"{path}: {metadata.name} from {metadata.provenance.get('source', source.name)}")
    if not args.verify:
        return 0
    parity = compare_written(path, pretrained.metadata.name, pretrained.model, pretrained.variables)
    say(parity)
    return 0 if parity.same else 1
