"""Recipes by name: the files of `configs/`, in a checkout or inside an installed package.

Nothing here executes a recipe; `train.run.recipe` does. A screen that lists them needs no JAX.
"""

from __future__ import annotations

import ast
from pathlib import Path

from vitswin_jax.core.types import UserError, nearest

_PACKAGE = Path(__file__).parents[1]
FOLDER = next(
    (folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()),
    _PACKAGE / "configs",
)
"""The package's own recipes: a wheel has them inside the package, a checkout beside it."""

DEFAULTS = "base"
"""The file of every key and its default, which is no recipe."""
ANY_MODEL, FROM_WEIGHTS = "folder", "finetune"
"""The recipes of data without a recipe of their own: from scratch, and from weights."""


def recipe_names() -> dict[str, str]:
    """Returns the name of each of the package's recipes -> the first line of its docstring."""
    return {
        path.stem: (ast.get_docstring(tree) or "").partition("\n")[0]
        for path in sorted(FOLDER.glob("*.py"))
        if path.stem != DEFAULTS and _is_recipe(tree := ast.parse(path.read_text(encoding="utf-8")))
    }


def _is_recipe(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.FunctionDef) and node.name == "get_config" for node in tree.body
    )


def is_recipe(text: str) -> bool:
    """Returns whether a text names a recipe that is there."""
    try:
        find_recipe(text)
    except UserError:
        return False
    return True


def find_recipe(text: str) -> tuple[Path, str | None]:
    """Returns the file and the argument of "NAME[:argument]" or "PATH.py[:argument]".

    A name is one of `recipe_names`. "configs/NAME.py" is that recipe where no such file is in the
    folder one is in, so that a command of a recipe's docstring works from any folder. Raises
    UserError, with the recipes there are, for what is neither.
    """
    name, colon, argument = text.partition(":")
    path = Path(name).expanduser()
    named = path.name == name or path.parent.name == "configs"
    if path.suffix == ".py" and path.is_file():
        found = path
    elif named and path.stem in recipe_names() and path.suffix in ("", ".py"):
        found = FOLDER / f"{path.stem}.py"
    else:
        raise UserError(_unknown(name, path))
    return found.resolve(), argument if colon else None


def _unknown(name: str, path: Path) -> str:
    names = recipe_names()
    if path.is_dir() or (path.exists() and path.suffix != ".py"):
        return f"{name}: is no recipe, which is a name or a .py file; there are {', '.join(names)}."
    missing = "no such file, and " if path.suffix == ".py" else ""
    hint = nearest(path.stem, names) or "."
    return f"{name}: {missing}no recipe is called so; there are {', '.join(names)}{hint}"
