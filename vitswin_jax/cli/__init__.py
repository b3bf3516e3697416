"""The `vitswin` command: one file per subcommand, none of them imported before it is asked for."""

from __future__ import annotations

import argparse
import difflib
import faulthandler
import importlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vitswin_jax.core import gpus, heap, signals
from vitswin_jax.core.cache import keep_compiled_programs
from vitswin_jax.core.started import process_start
from vitswin_jax.core.terminal import LogHandler, Parser, say, say_error
from vitswin_jax.core.version import __version__

_COMMANDS = {  # each a module of this package, with add_arguments(parser) and run(args)
    "train": "Train a model on a dataset with a recipe.",
    "config": "Print every key of a recipe and what differs from the defaults.",
    "runs": "Compare the runs of a folder, as a table and a page.",
    "stop": "Stop a run that is training, and have it write its results.",
    "plan": "Compile a training step and report whether it fits the devices, without using them.",
    "predict": "Classify images, or write their features.",
    "evaluate": "Evaluate weights on a dataset split and write a report.",
    "explain": "Show attention, Grad-CAM and learned parameters as pictures.",
    "convert": "Convert weights of any source to any format.",
    "push": "Publish weights with a model card on the Hugging Face hub.",
    "export": "Export weights to ONNX or StableHLO, and compare the outputs with JAX.",
    "models": "List the models, their costs and the published weights.",
    "benchmark": "Measure time, compilation and memory of models, beside other libraries.",
    "completion": "Print the script that lets a shell complete commands, flags and files.",
}

_EXAMPLES = """\
examples:
  vitswin train ./flowers                        train a ViT on a folder of images
  vitswin predict runs/NAME photo.jpg            classify an image with a trained run
  vitswin evaluate runs/NAME                     measure a run on its test split
  vitswin runs runs                              compare the runs of a folder
  vitswin explain runs/NAME photo.jpg            see where the model looks
  vitswin convert runs/NAME DST --to timm        take the weights to PyTorch
  vitswin push runs/NAME USER/NAME               publish a run on the Hugging Face hub
  vitswin models swin                            list the Swin models
"""

_ADVICE = {"train": "; the same command resumes from the last checkpoint, or begins without one."}
"""The end of the line with which a signal ends a command."""

_XLA = {"train": "3"}  # what fails in XLA is raised, or ends as a line
"""The least level of XLA's own messages, where it is not "2", without its hardware notes."""


def main(argv: Sequence[str] | None = None, *, command: str | None = None) -> int:
    """Runs a subcommand, `command` or the first argument; returns the exit status.

    It is 0, 1 for a mistake, which one line names, 2 for wrong usage, or 128 + a signal's number.
    """
    own_process = argv is None
    began = process_start() if own_process else time.monotonic()
    arguments = list(sys.argv[1:] if argv is None else argv)
    typed = ["vitswin", *arguments]
    if command is not None:
        typed = ["python", *sys.argv]
        arguments = [command, *arguments]
    name = arguments[0] if arguments else ""
    if own_process:
        signals.end_at_signals(_ADVICE.get(name, "."))  # before the imports, which take seconds
        if sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)
        if name != "train":  # which takes a GPU for itself, as is JAX's default
            gpus.take_memory_as_needed()
    if not arguments:
        _say_what_there_is()
        sys.exit(2)
    try:
        args = _parse(arguments)
    except BrokenPipeError:  # as in `vitswin train --help | head`
        return _nobody_reads()
    args.command, args.began = typed, began
    keep_compiled_programs()
    if own_process:
        heap.keep_freed_memory()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", _XLA.get(name, "2"))
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[LogHandler()])
    # Downloads take minutes and are announced.
    logging.getLogger("vitswin_jax.weights.download").setLevel(logging.INFO)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    """Runs a subcommand; what ends it early is a line and a status."""
    from vitswin_jax.core.memory import in_one_line_without_memory
    from vitswin_jax.core.types import UserError

    try:
        with in_one_line_without_memory(
            "a smaller batch, smaller images or a smaller model need less memory."
        ):
            status = args.run(args)
        sys.stdout.flush()  # here, where a broken pipe is caught
        return status
    except UserError as error:
        say_error(error)
        return getattr(error, "exit_code", 1)
    except BrokenPipeError:  # as in `vitswin models | head`
        return _nobody_reads()
    except KeyboardInterrupt:
        return 130


def _nobody_reads() -> int:
    """Discards the output, which Python would flush into a broken pipe at exit; returns 1."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed arguments; ends with the usage and the status 2 for wrong ones."""
    parser = _make_parser([name for name in _COMMANDS if name in arguments])
    first = arguments[0]
    if first not in _COMMANDS and not first.startswith("-"):
        near = difflib.get_close_matches(first, _COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_COMMANDS)}."
        parser.error(f"no command is called {first!r}; {hint}")
    keys: list[str] = []  # which argparse does not know; one with a space it takes for a word
    others: list[str] = []
    for each in _joined(arguments):
        (keys if _is_key(each) else others).append(each)
    args, rest = parser.parse_known_args(others)
    rest += keys
    if rest and not hasattr(args, "overrides"):  # a config's keys are no arguments to declare
        args.parser.error(
            f"unrecognized arguments: {' '.join(rest)}{_near_flag(rest, args.parser)}"
        )
    if rest:
        args.overrides = rest
    return args


def _is_key(argument: str) -> bool:
    """Returns whether an argument sets a key, as --section.key=value does."""
    return argument.startswith("--") and "." in argument.partition("=")[0]


def _near_flag(rest: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Returns "; did you mean --flag?" where the first unknown flag is like a parser's."""
    known = [flag for flag in parser.format_help().replace(",", " ").split() if flag[:2] == "--"]
    flag = next((each.partition("=")[0] for each in rest if each.startswith("--")), "")
    near = difflib.get_close_matches(flag, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _joined(arguments: Iterable[str]) -> Iterator[str]:
    """Gives arguments, "--section.key VALUE" as one: argparse knows no keys and so no values."""
    waiting = None  # a flag, what its value is like, and what stands for the flag without one
    for argument in arguments:
        if waiting is not None:
            (flag, like, alone), waiting = waiting, None
            if re.fullmatch(like, argument, re.DOTALL):
                yield f"{flag}={argument}"
                continue
            yield alone
        if re.fullmatch(r"--\w+(\.\w+)+", argument):
            waiting = argument, r"(?!--).*", argument
        elif argument == "--profile":  # which may be without a value
            waiting = argument, r"\d+:\d+", "--profile=true"
        else:
            yield argument
    if waiting is not None:
        yield waiting[2]


def whole_parser() -> argparse.ArgumentParser:
    """Returns the parser with the arguments of every subcommand."""
    return _make_parser(_COMMANDS)


def _make_parser(wanted: Iterable[str]) -> argparse.ArgumentParser:
    """Returns the parser; modules are imported for the `wanted` subcommands only."""
    kept: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
        "add_help": False,
    }
    help_text = "Print this help and exit."
    parser = Parser(
        prog="vitswin",
        description="Vision Transformer and Swin Transformer in JAX.",
        epilog=_EXAMPLES,
        **kept,
    )
    parser.add_argument("-h", "--help", action="help", help=help_text)
    version = f"%(prog)s {__version__}"
    parser.add_argument(
        "--version", action="version", version=version, help="Print the version and exit."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, **kept)
        command.add_argument("-h", "--help", action="help", help=help_text)
        if name in wanted:
            module = importlib.import_module(f"vitswin_jax.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run, parser=command)
    return parser


def _say_what_there_is() -> None:
    """Prints the commands, examples and recipes, if `vitswin` has no arguments."""
    from vitswin_jax.cli.recipe import list_recipes

    help_text = _make_parser([]).format_help().splitlines()
    say(*help_text, "", *list_recipes(), stream=sys.stderr)
