"""`vitswin benchmark`: time, compilation and memory of models, beside peers on the same work."""

from __future__ import annotations

import argparse
import ast
import datetime
import itertools
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitswin_jax.benchmark.peers import PEERS
from vitswin_jax.cli.inputs import DTYPES
from vitswin_jax.cli.table import format_table
from vitswin_jax.core.atomic import check_writable
from vitswin_jax.core.choices import one_of
from vitswin_jax.core.terminal import say, say_json
from vitswin_jax.core.types import UserError
from vitswin_jax.core.version import __version__

if TYPE_CHECKING:
    from vitswin_jax.benchmark.runner import Contestant

COLUMNS = ("ms", "images/s", "ns/pixel", "ratio", "minima", "CPU", "first, s", "MB", "temporary")
LEGEND = """\
ratio: our time / the peer's, median over the rounds (below 1: ours is faster). minima: the same of
the fastest rounds. CPU: the same of the CPU time. first: compilation and the first call. MB: peak
memory of the process or the accelerator. temporary: MB of temporaries, from XLA's plan. MFU: share
of the chip's peak FLOP/s."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        default=["vit_small_patch16_224"],
        metavar="NAME",
        help="Measure these models (default: vit_small_patch16_224).",
    )
    add(
        "--task",
        nargs="+",
        default=["inference"],
        choices=("inference", "train"),
        help="Measure inference, training or both (default: inference).",
    )
    add(
        "--batch-size",
        nargs="+",
        default=[8],
        type=int,
        metavar="N",
        help="Give N images to each call (default: 8).",
    )
    add(
        "--img-size",
        nargs="+",
        type=int,
        metavar="N",
        help="Use images of N x N pixels (default: the size of the model).",
    )
    add(
        "--dtype",
        nargs="+",
        default=["float32"],
        choices=DTYPES,
        help="Compute activations in this type (default: float32).",
    )
    add(
        "--peer",
        action="append",
        metavar="NAME[=PYTHON]",
        help=f"Measure this peer, one of {', '.join(PEERS)}, in the interpreter PYTHON (default: "
        "all peers that this interpreter has).",
    )
    add("--alone", action="store_true", help="Measure no other peers than those of --peer.")
    add(
        "--checkout",
        action="append",
        default=[],
        metavar="FOLDER",
        help="Let peers import from this folder, such as a checkout of vision_transformer.",
    )
    add(
        "--variant",
        action="append",
        default=[],
        metavar="FIELD=VALUE,...",
        help="Measure this variant of ours too, such as scan=True,remat=full or accum_steps=2.",
    )
    add("--products", action="store_true", help="Measure only the matrix products of a ViT too.")
    add(
        "--rounds",
        type=_at_least_one,
        default=7,
        metavar="N",
        help="Measure each contestant in N rounds (default: 7).",
    )
    add("--json", action="store_true", help="Print every measurement, one JSON object per case.")
    add("--plot", type=Path, metavar="PNG", help="Draw every round into this picture.")
    add(
        "--trace",
        type=Path,
        metavar="FOLDER",
        help="Write a profile of one of our calls per case into this folder.",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the table, or with --json a line a case as it is done; draws the plot."""
    # Several processes share an accelerator; each would else take three quarters of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from vitswin_jax.benchmark.cases import Case
    from vitswin_jax.benchmark.plot import save_plot
    from vitswin_jax.benchmark.runner import run_case

    if args.plot is not None:
        check_writable(args.plot)
    cases = [
        Case(*values)
        for values in itertools.product(
            args.model, args.task, args.batch_size, args.img_size or [None], args.dtype
        )
    ]
    for case in cases:
        _ = case.title  # raises for a model or a size that there is not, before anything is run
    contestants = find_contestants(args)
    results = []
    for case in cases:
        for result in run_case(case, contestants, rounds=args.rounds, trace=args.trace):
            results.append(result)
            if args.json:
                say_json(result | _circumstances())
            else:
                say(f"{result['title']}: done", stream=sys.stderr)
    if not args.json:
        say(_circumstances(), *format_results(results).splitlines(), *LEGEND.splitlines())
    if args.plot is not None:
        save_plot(args.plot, results)
    return 0


def find_contestants(args: argparse.Namespace) -> list[Contestant]:
    """Returns us first, then our variants, our products and the peers that are there.

    Raises UserError for a peer that is unknown, and one that is named and not there.
    """
    from vitswin_jax.benchmark.runner import Contestant

    found = [Contestant("ours", "ours")]
    found += [Contestant(text, "ours", variant=_variant(text)) for text in args.variant]
    if args.products:
        found.append(Contestant("products", "products"))
    named = dict(named_peer(text) for text in args.peer or [])
    looked_for = {} if args.alone or named else dict.fromkeys(PEERS, sys.executable)
    for name, python in (looked_for | named).items():
        peer = Contestant(name, name, python, checkouts=tuple(args.checkout))
        if peer.is_there():
            found.append(peer)
        elif name in named:
            needs = ", ".join(PEERS[name].needs)
            raise UserError(f"--peer {name}: {python} has not all of {needs}.")
    return found


def named_peer(text: str) -> tuple[str, str]:
    """Returns name and interpreter of NAME[=PYTHON]; raises UserError for no peer."""
    name, _, python = text.partition("=")
    return one_of("--peer", name, tuple(PEERS)), python or sys.executable


def _variant(text: str) -> dict[str, Any]:
    fields = {}
    for pair in text.split(","):
        name, found, value = pair.partition("=")
        if not found:
            raise UserError(f"--variant {text!r} must be FIELD=VALUE, several joined by commas.")
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            fields[name] = value  # a word, such as an implementation's name
    return fields


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)


def _circumstances() -> dict[str, str]:
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "version": __version__,
    }


def format_results(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns a heading for each result, with the machine's load, and a line a contestant."""
    cells: list[tuple[str, ...]] = [("", *COLUMNS, "MFU")]
    for result in results:
        cells += [_row(result, name) for name in result["contestants"]]
    first, *rest = format_table(cells, align="<" + ">" * (len(COLUMNS) + 1))
    text, lines = [first], iter(rest)
    for result in results:
        text.append(f"{result['title']} (load {result['load']:.1f})")
        text += itertools.islice(lines, len(result["contestants"]))
    return "\n".join(text)


def _row(result: Mapping[str, Any], name: str) -> tuple[str, ...]:
    one = result["contestants"][name]
    seconds = statistics.median(one["wall"])
    return (
        f"  {name}",
        f"{1e3 * seconds:.1f}",
        f"{result['case']['batch_size'] / seconds:.1f}",
        f"{1e9 * seconds / result['pixels']:.0f}",
        *(f"{one['ours_to_it'][key]:.2f}" for key in ("median", "min", "cpu")),
        f"{one['first_s']:.1f}",
        _megabytes(one["peak_bytes"]),
        _megabytes(one["temporary_bytes"]),
        "-" if one["mfu"] is None else f"{100 * one['mfu']:.1f} %",
    )


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f}"
