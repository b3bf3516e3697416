"""`vitswin convert`: weights from any source to any format that has their family."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from vitswin_jax.core.types import UserError

if TYPE_CHECKING:
    from vitswin_jax.weights.metadata import Metadata

FORMATS = ("native", "google", "timm", "microsoft", "huggingface")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument(
        "source", metavar="SRC", help="a weights file of any source, a workdir, or a published name"
    )
    parser.add_argument("target", metavar="DST", help="the file to write")
    parser.add_argument("--to", choices=FORMATS, default="native", help="default: native")
    parser.add_argument("--model", metavar="NAME", help="the variant, where the file is unclear")
    parser.add_argument(
        "--img-size", type=image_size, metavar="N|HxW", help="resize to this image size"
    )
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="another number gives a fresh head; 0: none"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="load what was written and print the largest difference of the logits",
    )


def run(args: argparse.Namespace) -> int:
    """Writes DST and says what it holds; 1 where --verify finds other logits."""
    from vitswin_jax.models.registry import create_model
    from vitswin_jax.weights.download import file_digest
    from vitswin_jax.weights.open import open_weights, weights_file
    from vitswin_jax.weights.pretrained import load_pretrained, save_pretrained

    logging.getLogger("vitswin_jax").setLevel(logging.INFO)
    source, target = weights_file(args.source), Path(args.target)
    if target.exists() and target.resolve() == source.resolve():
        raise UserError(f"{target}: is the file to be converted; give another name.")
    fields = {"num_classes": args.num_classes, "img_size": args.img_size}
    fields = {name: value for name, value in fields.items() if value is not None}
    model, variables = load_pretrained(args.source, args.model, **fields)
    metadata = open_weights(args.source, args.model, **fields).metadata
    metadata = dataclasses.replace(
        metadata, provenance={**metadata.provenance, "sha256": file_digest(source, "sha256")}
    )
    if "num_classes" in fields and fields["num_classes"] != metadata.fields["num_classes"]:
        metadata = dataclasses.replace(metadata, class_names=None)
    if any(metadata.fields[name] != value for name, value in fields.items()):
        metadata = _without_accuracy(metadata)
    if metadata.preprocess is not None:
        size = create_model(metadata.name, **{**metadata.fields, **fields}).img_size
        size = size if isinstance(size, tuple) else (size, size)
        preprocess = dataclasses.replace(metadata.preprocess, img_size=size)
        metadata = dataclasses.replace(metadata, preprocess=preprocess)
    path = save_pretrained(target, model, variables, format=args.to, metadata=metadata)
    print(f"{path}: {metadata.name} from {metadata.provenance.get('source', source.name)}")
    return _verify(path, model, variables, metadata.name) if args.verify else 0


def _without_accuracy(metadata: Metadata) -> Metadata:
    """Returns the metadata without the accuracy that was published of another head or size."""
    kept = {k: v for k, v in metadata.provenance.items() if not k.startswith("expected_top1")}
    return dataclasses.replace(metadata, provenance=kept)


def _verify(path: Path, model, variables, name: str) -> int:
    """Prints the largest difference of the logits of random images; 1 where it is not tiny.

    What the other code computes in another way, such as its GELU, is no difference of the file's.
    """
    import jax
    import numpy as np

    from vitswin_jax.nn.layers import pair
    from vitswin_jax.weights.open import NUMERICS
    from vitswin_jax.weights.pretrained import load_pretrained

    same = {field: getattr(model, field) for field in NUMERICS if hasattr(model, field)}
    other, reloaded = load_pretrained(path, name, **same)
    shape = (2, *pair(model.img_size), model.in_chans)
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        logits, again = (
            np.asarray(jax.jit(m.apply)(v, images))
            for m, v in ((model, variables), (other, reloaded))
        )
    if logits.shape != again.shape:
        raise UserError(f"{path}: gives {again.shape[1]} logits, not {logits.shape[1]}.")
    difference = float(np.abs(logits - again).max())
    print(f"largest difference of the logits: {difference:.3g} (their std is {logits.std():.3g})")
    return 0 if difference <= 1e-5 * max(float(logits.std()), 1e-6) else 1


def image_size(text: str) -> int | tuple[int, int]:
    """Reads N or HxW; argparse says so where it is neither."""
    sides = tuple(int(side) for side in text.lower().split("x"))
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError(text)
    return sides[0] if len(sides) == 1 else sides
