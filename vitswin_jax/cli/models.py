"""`vitswin models`: the variants with their costs, the parts of one, and published weights."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vitswin_jax.cli.table import format_table
from vitswin_jax.core.terminal import say, say_json
from vitswin_jax.core.types import UserError
from vitswin_jax.models.aliases import ALIASES
from vitswin_jax.models.names import nearest_name
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.plan.variant_costs import Cost, variant_costs
from vitswin_jax.weights.published import Published, published

if TYPE_CHECKING:
    from flax import linen as nn

    from vitswin_jax.plan.parts import Part


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    add = parser.add_argument
    add(
        "pattern",
        nargs="?",
        default="*",
        metavar="NAME",
        help="List the names that contain this text, or match it with * and ? as in a shell. A "
        "whole name, or weights, shows that model part by part.",
    )
    add(
        "--sources",
        action="store_true",
        help="List the published weights, by the names that every command takes.",
    )
    add("--json", action="store_true", help="Print each model or file as one JSON object.")


def run(args: argparse.Namespace) -> int:
    """Prints what matches, of the variants or, with --sources, of the published weights."""
    if args.sources:
        files = published()
        rows = [files[name] for name in _matching(args.pattern, files, "published weights match")]
        _print(_sources(rows), map(_facts, rows) if args.json else None)
        return 0
    if (one := _one_model(args.pattern)) is not None:
        lines, facts = _parts(*one)
        _print(lines, [facts] if args.json else None)
        return 0
    names = _matching(args.pattern, sorted(VARIANTS), "model matches")
    costs = {name: variant_costs()[name] for name in names}
    _print(_table(costs), map(_counts, costs.items()) if args.json else None)
    return 0


def _print(lines: Iterable[str], facts: Iterable[Mapping[str, object]] | None) -> None:
    """Prints facts as JSON, one object a line, or else the lines."""
    if facts is None:
        say(*lines)
    for each in facts or ():
        say_json(each)


def _one_model(name: str) -> tuple[str, nn.Module] | None:
    """Returns the model that a name or a weights file is of; None: it is to be looked for.

    The names of all models go before a file's, so that no folder hides a list.
    """
    exact = name in VARIANTS or name in ALIASES
    pattern = _is_pattern(name) and not os.path.exists(name)  # noqa: PTH110, a name of any kind
    if not exact and (pattern or _found(name, VARIANTS)):
        return None
    from vitswin_jax.models.registry import create_model, resolve_name  # imports Flax
    from vitswin_jax.weights.locate import split_key

    if not exact and Path(split_key(name)[0]).exists():
        from vitswin_jax.weights.open import open_pretrained

        pretrained = open_pretrained(name)
        return f"{name} ({pretrained.metadata.name})", pretrained.model
    variant, _ = resolve_name(name)
    return variant if variant == name else f"{name} ({variant})", create_model(name)


def _parts(title: str, model: nn.Module) -> tuple[list[str], dict[str, object]]:
    import jax.numpy as jnp

    from vitswin_jax.nn.layers import pair
    from vitswin_jax.plan.parts import Part, describe_parts, merge_equal

    parts = describe_parts(model)
    keys = ("parameters", "multiply_adds", "activation_bytes")
    sums = [sum(getattr(part, key) for part in parts) for key in keys]
    size = pair(model.img_size)
    facts = {
        "model": title.partition(" ")[0],
        "img_size": size,
        **dict(zip(keys, sums, strict=True)),
        "parts": [dataclasses.asdict(part) for part in parts],
    }
    rows = [_part_row(part) for part in merge_equal(parts)]
    dtype = jnp.dtype(model.dtype).name
    table = [("part", "parameters", "multiply-adds", "activations"), *rows]
    lines = [
        f"{title}, one image of {'x'.join(map(str, size))} pixels, {dtype}",
        *format_table([*table, _part_row(Part("all", *sums))], align="<>>>"),
        "activations: what the forward pass keeps for the backward pass, where it is made",
    ]
    return lines, facts


def _is_pattern(name: str) -> bool:
    return any(character in name for character in "*?[")


def _found(pattern: str, known: Iterable[str]) -> list[str]:
    return fnmatch.filter(known, pattern if _is_pattern(pattern) else f"*{pattern}*")


def _matching(pattern: str, known: Iterable[str], what: str) -> list[str]:
    known = list(known)
    names = _found(pattern, known)
    if not names:
        hint = nearest_name(pattern, known) or "; without a pattern all are listed."
        raise UserError(f"no {what} {pattern!r}{hint}")
    return names


def _part_row(part: Part) -> tuple[str, str, str, str]:
    return (
        part.name,
        f"{part.parameters:,}",
        giga(part.multiply_adds) if part.multiply_adds else "",
        f"{part.activation_bytes / 1e6:.2f} MB",
    )


def _table(costs: dict[str, Cost]) -> list[str]:
    rows = [("model", "parameters", "multiply-adds", "image")]
    for name, cost in costs.items():
        size = "x".join(map(str, cost.img_size))
        rows.append((name, f"{cost.parameters / 1e6:.1f} M", giga(cost.multiply_adds), size))
    return format_table(rows, align="<>>>")


def _counts(item: tuple[str, Cost]) -> dict[str, object]:
    name, cost = item
    return {"model": name, **dataclasses.asdict(cost)}


def _sources(rows: list[Published]) -> list[str]:
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
    lines = format_table(facts, align="<<>>")
    return [
        text
        for row, line in zip(rows, lines, strict=True)
        for text in (row.name, f"  {line}", f"  {row.address}")
    ]


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
