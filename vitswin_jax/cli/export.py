"""`vitswin export`: weights as a program for other runtimes, compared with JAX."""

from __future__ import annotations

import argparse
import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitswin_jax.cli.calibration import IMAGES, calibration_images
from vitswin_jax.cli.inputs import (
    DATA_DIR_HELP,
    IMG_SIZE_HELP,
    MODEL_HELP,
    OUTSIDE_HELP,
    SPLIT_HELP,
    add_weights,
    check_order,
    image_size,
)
from vitswin_jax.core.choices import one_of
from vitswin_jax.core.terminal import say
from vitswin_jax.core.types import Batch, UserError, listed
from vitswin_jax.export.kinds import CALIBRATED, KINDS, WEIGHTS

if TYPE_CHECKING:
    from vitswin_jax.export.program import Difference, Program, Run

_CALIBRATED = " or ".join(CALIBRATED)
_FORMATS = ("onnx", "stablehlo")  # each a module of vitswin_jax.export, and a suffix
_ELSEWHERE = {
    **dict.fromkeys(("engine", "plan", "trt"), "TensorRT"),
    **dict.fromkeys(("mlpackage", "mlmodel"), "Core ML"),
    "tflite": "LiteRT",
    "xml": "OpenVINO",
}
"""Suffix -> the tool that makes such a file of one that is written here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    add_weights(parser)
    add = parser.add_argument
    add("target", metavar="DST", help="Write the program to this file.")
    add(
        "--to",
        choices=_FORMATS,
        help="Write this format (default: by the suffix of DST).",
    )
    add("--model", metavar="NAME", help=MODEL_HELP)
    add("--img-size", type=image_size, metavar="N|HxW", help=IMG_SIZE_HELP)
    add(
        "--any-size",
        action="store_true",
        help="Leave height and width of the images open: a ViT resizes its table of positions, and "
        "a Swin pads maps to whole windows.",
    )
    add(
        "--uint8",
        action="store_true",
        help="Let the program take pixels in [0, 255] and normalise them.",
    )
    add(
        "--quantize",
        choices=KINDS,
        help=f"Store matrices as 8-bit integers and compute in float32 ({WEIGHTS}), or, in ONNX "
        f"only, also multiply 8-bit integers, by QuantizeLinear and DequantizeLinear "
        f"({_CALIBRATED}: with a zero point for activations, or, for TensorRT, without).",
    )
    add(
        "--calibrate",
        metavar="DATASET",
        help=f"With {_CALIBRATED}, take the ranges of activations from up to {IMAGES} images of "
        "this dataset or folder of images (default: the dataset of the training).",
    )
    add(
        "--calibrate-split",
        metavar="SPLIT",
        help="Take these images from this split or part (default: as --split).",
    )
    add(
        "--images",
        nargs="+",
        metavar="IMAGE",
        default=(),
        help="Compare the program with JAX on these images too.",
    )
    add(
        "--dataset",
        metavar="DATASET",
        nargs="?",
        const="",
        help="Measure the accuracy of the weights and of the program on this dataset (without a "
        "name: the dataset of the training).",
    )
    add("--split", help=SPLIT_HELP)
    add("--data-dir", metavar="DIR", help=DATA_DIR_HELP)
    add("--outside-files", action="store_true", help=OUTSIDE_HELP)


def run(args: argparse.Namespace) -> int:
    """Writes DST once it has been reloaded and agrees with JAX; says how closely."""
    check_order(args, args.target)
    kind = _format(args.target, args.to)
    write, load = _exporter(kind)
    _check_calibration(args, kind)
    if args.any_size and args.img_size is not None:
        raise UserError(
            "--any-size and --img-size cannot be given together: with --any-size the file takes "
            "every size, and resizes tables from the size of the weights; leave one of them out."
        )
    from vitswin_jax.export.program import compare, make_program, sample_images
    from vitswin_jax.weights.open import open_pretrained

    pretrained = open_pretrained(args.weights, args.model, img_size=args.img_size)
    target = Path(args.target)
    if target.exists() and target.resolve() == pretrained.file.resolve():
        raise UserError(f"{target}: is the file to be exported; give another name.")
    make = functools.partial(
        make_program,
        pretrained.model,
        pretrained.variables,
        metadata=pretrained.metadata,
        uint8=args.uint8,
        resized=pretrained.methods.pos_embed if args.any_size else None,
    )
    plain = make()
    program = make(quantize=True) if args.quantize == WEIGHTS else plain
    images = np.concatenate([sample_images(program), *_read_images(program, args.images)])
    lost: Difference | None
    if args.quantize in CALIBRATED:
        difference, lost, weights = _write_calibrated(args, program, images)
    else:
        difference = write(args.target, program, images=images)
        lost = compare(plain.runner(), program.runner(), [images]) if args.quantize else None
        weights = program.describe()["weights"]
    described = program.describe()
    size = target.stat().st_size
    say(f"{args.target}: {described['name']}, {weights}, {size / 1e6:,.2f} MB")
    say(f"takes {described['input']}; gives {described['output']}")
    sizes = listed(f"{height}x{width}" for height, width in program.checked_sizes)
    others = f" and samples of {sizes}" if sizes else ""
    rounded = ", before activations are rounded" if args.quantize in CALIBRATED else ""
    say(f"largest difference from JAX{rounded}: {difference}, over {len(images)} images{others}")
    if lost:
        held = sum(array.nbytes for array in plain.params.values()) / 1e6
        say(f"largest difference by int8: {lost}; as float32 the weights are {held:,.2f} MB")
    if args.dataset is not None:
        runs = {"the weights in JAX": plain.runner(), str(args.target): load(args.target)}
        _print_accuracy(args, program, runs)
    return 0


def _check_calibration(args: argparse.Namespace, kind: str) -> None:
    """Raises UserError for options of calibration that the others contradict."""
    if args.quantize in CALIBRATED and kind != "onnx":
        raise UserError(
            f"--quantize {args.quantize} writes ONNX, not {kind}; use --to onnx, or --quantize "
            f"{WEIGHTS}."
        )
    for option in ("calibrate", "calibrate_split"):
        if getattr(args, option) is not None and args.quantize not in CALIBRATED:
            name = f"--{option.replace('_', '-')}"
            raise UserError(f"{name} is for --quantize {_CALIBRATED}, which is not given; add it.")


def _write_calibrated(
    args: argparse.Namespace, program: Program, images: np.ndarray
) -> tuple[Difference, Difference, str]:
    """Writes DST with 8-bit products; returns both differences, and a phrase on the weights."""
    from vitswin_jax.export.calibrated import export_calibrated

    source, pixels = calibration_images(args, program)
    say(f"ranges of activations from {len(pixels)} images of {source}")
    differences = export_calibrated(
        args.target, program, program.take(pixels), kind=args.quantize, images=images
    )
    return *differences, CALIBRATED[args.quantize].described


def _format(target: str, asked: str | None) -> str:
    suffix = Path(target).suffix.removeprefix(".")
    if not asked and suffix in _ELSEWHERE:
        raise UserError(
            f"{target}: {_ELSEWHERE[suffix]}'s own tool makes a .{suffix} file, from a model that "
            "vitswin_jax writes; the page docs/deploy.md has the recipe."
        )
    return asked or one_of(f"{target}: without --to, the suffix", suffix, _FORMATS)


def _exporter(kind: str) -> tuple[Any, Any]:
    """Returns a format's writer and loader."""
    try:
        module = importlib.import_module(f"vitswin_jax.export.{kind}")
    except ImportError as error:
        raise UserError(
            f"--to {kind} needs the package {error.name}; pip install 'vitswin_jax[export]'."
        ) from error
    return getattr(module, f"export_{kind}"), getattr(module, f"load_{kind}")


def _read_images(program: Program, paths: Sequence[str]) -> list[np.ndarray]:
    """Returns images as the program takes them, each a batch of one."""
    from vitswin_jax.data.sources.files import read_file

    preprocess = program.preprocess
    pixels = (preprocess.image(preprocess.decode(read_file(path), name=path)) for path in paths)
    return [program.take(image[None]) for image in pixels]


def _print_accuracy(args: argparse.Namespace, program: Program, runs: Mapping[str, Run]) -> None:
    """Prints each program's accuracy over a split."""
    from vitswin_jax.cli.evaluate import open_evaluated
    from vitswin_jax.data.pipeline import make_eval_batches
    from vitswin_jax.evaluate.classes import match_classes
    from vitswin_jax.evaluate.evaluation import predict_dataset, summarize

    metadata = program.metadata
    source = open_evaluated(args, metadata)
    match = match_classes(metadata.class_names, program.model.num_classes, source)
    say(f"{source.name}, {len(source):,} images")
    for name, run in runs.items():
        batches = make_eval_batches(source, batch_size=64, preprocess=program.preprocess)

        def predict(batch: Batch, run: Any = run) -> Any:
            return run(program.take(batch["image"]))

        logits, labels = predict_dataset(predict, batches)
        top1 = summarize(match.select(logits), labels, match.class_names).top1
        say(f"  top-1 {100 * top1:6.2f} %  {name}")
