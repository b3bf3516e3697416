"""`vitswin models`: the variants and what they cost."""

from __future__ import annotations

import argparse

from vitswin_jax.cli.table import format_table
from vitswin_jax.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        help="a part of the names, or with * and ? as in a shell: 'swin_*_384' (default: all)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints a table: name, parameters, multiply-adds of one image, image size."""
    from vitswin_jax.analysis.cost import describe
    from vitswin_jax.models.registry import create_model, model_names, nearest

    whole = any(character in args.pattern for character in "*?[")
    names = model_names(args.pattern if whole else f"*{args.pattern}*")
    if not names:
        hint = nearest(args.pattern, model_names()) or "; `vitswin models` lists all."
        raise UserError(f"no model matches {args.pattern!r}{hint}")
    rows = [("model", "parameters", "multiply-adds", "image")]
    for name in names:
        cost = describe(create_model(name, scan=True))  # scanned: the same counts, traced sooner
        size = "x".join(map(str, cost.img_size))
        rows.append((name, f"{cost.parameters / 1e6:.1f} M", giga(cost.multiply_adds), size))
    print(format_table(rows, align="<>>>"))
    return 0


def giga(count: int) -> str:
    """Returns a count in billions with three digits: "0.31 G", "4.61 G", "17.6 G", "167 G"."""
    value = count / 1e9
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} G"
