"""`vitswin config`: every key of a recipe, its value, and what differs from the defaults."""

from __future__ import annotations

import argparse

from vitswin_jax.cli.recipe import add_recipe, list_recipes, read_config
from vitswin_jax.cli.table import format_table
from vitswin_jax.core.terminal import say, say_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    add_recipe(parser)
    parser.add_argument(
        "--changed", action="store_true", help="Print only the keys that differ from the defaults."
    )
    parser.add_argument("--json", action="store_true", help="Print the config as one JSON object.")


def run(args: argparse.Namespace) -> int:
    """Prints a recipe's config, or without a recipe the recipes there are."""
    if not any((args.recipe, args.data, args.config, args.overrides)):
        say(*list_recipes(), "", "`vitswin config RECIPE` prints one, key by key.")
        return 0
    from vitswin_jax.train.run.overrides import config_keys
    from vitswin_jax.train.run.recipe import read_defaults

    config = read_config(args, also=("--changed", "--json"))
    if args.json:
        say_json(config.to_dict())
        return 0
    defaults = config_keys(read_defaults(config.model.name))
    keys = config_keys(config)
    rows = [
        [key, repr(value), "" if value == defaults[key] else f"default: {defaults[key]!r}"]
        for key, value in keys.items()
    ]
    changed = [row for row in rows if row[2]]
    table = changed if args.changed else rows
    say(*format_table(table, align="<<<"))
    say("", f"{len(changed)} of {len(rows)} keys differ from the defaults.")
    return 0
