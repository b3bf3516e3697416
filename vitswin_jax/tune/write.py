"""Config as a recipe file, which `vitswin train FILE` repeats."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitswin_jax.core.atomic import replacing
from vitswin_jax.train.run.recipe import changed_values

RECIPE = "recipe.py"
"""The name, in the workdir, of the recipe that repeats a run with --minutes."""
_WIDTH = 99  # characters of a line of the docstring


def write_recipe(path: Path, config: ConfigDict, text: Sequence[str]) -> Path:
    """Writes the recipe of a config, with lines of text as its docstring; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(recipe_of(config, text), encoding="utf-8")
    return path


def recipe_of(config: ConfigDict, text: Sequence[str]) -> str:
    """Returns the text of a recipe's file: what differs from the defaults, section by section."""
    changed: dict[str, Any] = {"model": {"name": config.model.name}}
    for key, value in changed_values(config).items():
        section, dot, name = key.rpartition(".")
        place = changed.setdefault(section, {}) if dot else changed
        place[name] = value
    parts = [f"        {name}={_written(value)},\n" for name, value in changed.items()]
    lines = [part for line in text for part in textwrap.wrap(line, _WIDTH) or [""]]
    doc = "\n".join(lines).replace("\\", "\\\\").replace('"""', "'''")
    return (
        f'"""{doc}\n"""\n\n'
        "from configs import base\n\n\n"
        "def get_config():\n"
        '    """Returns the recipe."""\n'
        "    return base.recipe(\n" + "".join(parts) + "    )\n"
    )


def _written(value: Any) -> str:
    """Returns a value as Python writes it, a section's keys one below the other."""
    if isinstance(value, Mapping):
        keys = [f'            "{key}": {_written(each)},\n' for key, each in value.items()]
        return "{\n" + "".join(keys) + "        }"
    text = repr(value)
    return f'"{text[1:-1]}"' if text[:1] == "'" and not set(text) & set('"\\') else text
