"""`vitswin models`: the variants and what they cost, and the weights that are published."""

from __future__ import annotations

import argparse
import fnmatch
import json
from collections.abc import Iterable

from vitswin_jax.analysis.variant_costs import Cost, variant_costs
from vitswin_jax.cli.table import format_table
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.published import Published, published
from vitswin_jax.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        help="a part of the names, or with * and ? as in a shell: 'swin_*_384' (default: all)",
    )
    parser.add_argument(
        "--sources",
        action="store_true",
        help="list the published weights, by the names that every command takes",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per model or file"
    )


def run(args: argparse.Namespace) -> int:
    """Prints what matches, of the variants or, with --sources, of the published weights."""
    if args.sources:
        files = published()
        rows = [files[name] for name in _matching(args.pattern, files, "published weights match")]
        print("\n".join(map(json.dumps, map(_facts, rows))) if args.json else _sources(rows))
        return 0
    names = _matching(args.pattern, sorted(VARIANTS), "model matches")
    costs = {name: variant_costs()[name] for name in names}
    print("\n".join(map(json.dumps, map(_counts, costs.items()))) if args.json else _table(costs))
    return 0


def _matching(pattern: str, known: Iterable[str], what: str) -> list[str]:
    known = list(known)
    whole = any(character in pattern for character in "*?[")
    names = fnmatch.filter(known, pattern if whole else f"*{pattern}*")
    if not names:
        from vitswin_jax.models.registry import nearest  # imports Flax

        hint = nearest(pattern, known) or "; without a pattern all are listed."
        raise UserError(f"no {what} {pattern!r}{hint}")
    return names


def _table(costs: dict[str, Cost]) -> str:
    rows = [("model", "parameters", "multiply-adds", "image")]
    for name, cost in costs.items():
        size = "x".join(map(str, cost.img_size))
        rows.append((name, f"{cost.parameters / 1e6:.1f} M", giga(cost.multiply_adds), size))
    return format_table(rows, align="<>>>")


def _counts(item: tuple[str, Cost]) -> dict[str, object]:
    name, cost = item
    return {
        "model": name,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "img_size": cost.img_size,
    }


def _sources(rows: list[Published]) -> str:
    """Returns three lines a file: names and addresses are too long for columns, and get copied."""
    facts = [
        (
            row.variant,
            "no head" if row.class_list == "none" else row.class_list,
            "x".join(map(str, variant_costs()[row.variant].img_size)),
            "" if row.top1 is None else f"{row.top1:.2f} %",
        )
        for row in rows
    ]
    lines = format_table(facts, align="<<>>").splitlines()
    return "\n".join(
        f"{row.name}\n  {line}\n  {row.address}" for row, line in zip(rows, lines, strict=True)
    )


def _facts(row: Published) -> dict[str, object]:
    return {
        "name": row.name,
        "model": row.variant,
        "class_list": row.class_list,
        "num_classes": row.num_classes,
        "img_size": variant_costs()[row.variant].img_size,
        "preprocess": dict(row.images),
        "top1": row.top1,
        "top1_by": row.top1_by,
        "address": row.address,
        "digest": row.digest,
        "document": row.document,
    }


def giga(count: int) -> str:
    """Returns a count in billions with three digits: "0.31 G", "4.61 G", "17.6 G", "167 G"."""
    value = count / 1e9
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} G"
