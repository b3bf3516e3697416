"""The `vitswin` command: one file per subcommand, none of them imported before it is asked for."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from vitswin_jax.core.cache import keep_compiled_programs
from vitswin_jax.core.heap import keep_freed_memory
from vitswin_jax.core.signals import end_at_signals
from vitswin_jax.core.terminal import LogHandler, Parser, say_error
from vitswin_jax.core.version import __version__

_COMMANDS = {  # each a module of this package, with add_arguments(parser) and run(args)
    "models": "list the variants: parameters, multiply-adds, image size",
    "convert": "convert weights from any source to any format",
    "export": "export weights as ONNX or StableHLO, compared with JAX",
    "predict": "name what images show",
    "explain": "show what a model sees in images: attention, Grad-CAM, what it has learned",
    "plan": "compile a run's train step and say whether it fits, before any hardware is used",
    "evaluate": "measure weights on a whole dataset split and write a report",
    "benchmark": "time models, their compilation and memory, beside peers on the same work",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status: 0, 1 for a mistake (one line says which), 2."""
    own_process = argv is None
    if own_process:
        end_at_signals()  # before the imports, which take seconds
    from vitswin_jax.core.memory import in_one_line_without_memory
    from vitswin_jax.core.types import UserError

    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(argv)
    args, rest = parser.parse_known_args(argv)
    if rest and not hasattr(args, "overrides"):  # a config's keys are no arguments to declare
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = rest
    keep_compiled_programs()
    if own_process:
        keep_freed_memory()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes about the hardware it missed
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[LogHandler()])
    # Downloads take minutes and are announced.
    logging.getLogger("vitswin_jax.weights.download").setLevel(logging.INFO)
    try:
        with in_one_line_without_memory(
            "a smaller batch, smaller images or a smaller model need less memory."
        ):
            status = args.run(args)
        sys.stdout.flush()  # here, where a broken pipe is caught
        return status
    except UserError as error:
        say_error(error)
        return 1
    except BrokenPipeError:  # as in `vitswin models | head`: nobody reads on
        # At exit Python flushes what is left, into a pipe that is still broken.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = Parser(prog="vitswin", description="Vision Transformer and Swin Transformer in JAX.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        if name in argv:  # a module is imported for its own command only
            module = importlib.import_module(f"vitswin_jax.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser
