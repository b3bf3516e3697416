"""Writes a config as a recipe's file, which `vitswin train FILE` repeats."""

from __future__ import annotations

import pprint
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitswin_jax.core.atomic import replacing
from vitswin_jax.train.run.overrides import config_keys
from vitswin_jax.train.run.recipe import read_defaults

RECIPE = "recipe.py"
"""What a run with --minutes calls, in its workdir, the recipe that repeats it."""
_INDENT = 8


def write_recipe(path: Path, config: ConfigDict, text: Sequence[str]) -> Path:
    """Writes the recipe of a config, with lines of text as its docstring; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(recipe_of(config, text), encoding="utf-8")
    return path


def recipe_of(config: ConfigDict, text: Sequence[str]) -> str:
    """Returns the text of a recipe's file: what differs from the defaults, section by section."""
    defaults, keys = config_keys(read_defaults(config.model.name)), config_keys(config)
    changed: dict[str, Any] = {"model": {"name": config.model.name}}
    for key, value in keys.items():
        if value != defaults.get(key):
            section, dot, name = key.rpartition(".")
            place = changed.setdefault(section, {}) if dot else changed
            place[name] = value
    parts = [f"        {name}={_written(value, name)},\n" for name, value in changed.items()]
    doc = "\n".join(text).replace("\\", "\\\\").replace('"""', "'''")
    return (
        f'"""{doc}\n"""\n\n'
        "from configs import base\n\n\n"
        "def get_config():\n"
        '    """Returns the recipe."""\n'
        "    return base.recipe(\n" + "".join(parts) + "    )\n"
    )


def _written(value: Any, name: str) -> str:
    if not isinstance(value, Mapping):
        return repr(value)
    lines = pprint.pformat(dict(value), width=90 - _INDENT, sort_dicts=False).splitlines()
    return ("\n" + " " * (_INDENT + len(name) + 1)).join(lines)
