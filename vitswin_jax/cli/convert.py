"""`vitswin convert`: weights from any source to any format that has their family."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from vitswin_jax.cli.inputs import IMG_SIZE_HELP, MODEL_HELP, image_size
from vitswin_jax.core.terminal import say
from vitswin_jax.core.types import UserError

if TYPE_CHECKING:
    from vitswin_jax.weights.open import Pretrained

UNSAID = ("norm_eps", "window_clip", "pad_before_roll", "mask_value", "group_norm_eps",
          "weight_var_eps", "weight_std_eps")  # fmt: skip
"""Fields that no configuration states: a library's own code decides them."""

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
    return _verify(path, pretrained) if args.verify else 0


def _verify(path: Path, source: Pretrained) -> int:
    """Prints the largest difference of the logits of random images; 1 unless it is tiny.

    What the other code computes in another way, such as its GELU, is no difference of the file's.
    """
    import jax
    import numpy as np

    from vitswin_jax.nn.layers import pair
    from vitswin_jax.weights.open import NUMERICS, open_pretrained

    model = source.model
    same = {field: getattr(model, field) for field in NUMERICS if hasattr(model, field)}
    if path.is_dir():  # whose configuration has these, but for what the warning lists
        stated = open_pretrained(path)
        same = {f: x for f, x in same.items() if f in UNSAID and getattr(stated.model, f) != x}
        reloaded = stated.changed(**same)
    else:
        reloaded = open_pretrained(path, source.metadata.name, **same)
    shape = (2, *pair(model.img_size), model.in_chans)
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        logits, again = (
            np.asarray(jax.jit(weights.model.apply)(weights.variables, images))
            for weights in (source, reloaded)
        )
    if logits.shape != again.shape:
        raise UserError(f"{path}: gives {again.shape[1]} logits, not {logits.shape[1]}.")
    difference = float(np.abs(logits - again).max())
    say(f"largest difference of the logits: {difference:.3g} (their std is {logits.std():.3g})")
    return 0 if difference <= 1e-5 * max(float(logits.std()), 1e-6) else 1
