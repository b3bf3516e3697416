"""A recipe with the changes of a command line, as a config; a mistake is one line."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from vitswin_jax.core import recipes
from vitswin_jax.core.types import UserError
from vitswin_jax.models.registry import FAMILIES, family_of, model_kwargs, resolve_name
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.train.run.overrides import apply_overrides, config_keys

NEIGHBOURS = "configs"
"""The package by which a recipe imports its neighbours and `base`."""


def read_recipe(recipe: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Returns the config of "NAME[:argument]" or "PATH.py[:argument]", with what overrides change.

    An override is written as on a command line (`overrides.apply_overrides`). Raises UserError for
    a file, an argument, a key or a value that cannot be.
    """
    path, argument = recipes.find_recipe(recipe)
    arguments = [] if argument is None else [argument]
    with _imported(path) as module, _in_one_line(path):
        if not hasattr(module, "get_config"):
            raise UserError(
                f"{path}: has no function get_config; a recipe is a file whose "
                "get_config() returns a ConfigDict."
            )
        config = module.get_config(*arguments)
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path}: get_config must return a ConfigDict; it returns {type(config).__name__}."
        )
    apply_overrides(config.lock(), overrides)
    return config


def read_defaults(model: str) -> ConfigDict:
    """Returns the defaults of every key: those of `configs/base.py` and of a model, by its name."""
    with _imported(recipes.FOLDER / f"{recipes.DEFAULTS}.py") as base:
        return base.recipe(model={"name": model})


def changed_values(config: ConfigDict) -> dict[str, Any]:
    """Returns the keys of a config that differ from the defaults, and their values."""
    defaults = config_keys(read_defaults(config.model.name))
    return {key: value for key, value in config_keys(config).items() if value != defaults.get(key)}


def set_model(config: ConfigDict, name: str) -> None:
    """Puts another model, by its name, into a config; raises UserError for an unknown name.

    What the name states is the model's; other changes that the recipe made of its model stay where
    the new one has such a field.
    """
    fields = model_kwargs(name)
    before = model_kwargs(config.model.name)
    stated = VARIANTS.get(resolve_name(name)[0], ("", {}))[1]
    kept = {
        key: value
        for key, value in config.model.items()
        if key in fields and key in before and key not in stated and value != before[key]
    }
    with _imported(recipes.FOLDER / f"{recipes.DEFAULTS}.py") as base, config.unlocked():
        config.model = base.model_section(name, **kept)


def set_module(config: ConfigDict, module: Any) -> None:
    """Puts a model of `create_model` into a config, with all its fields but the classes' number.

    That is the data's, unless the module has another than its family's default.
    """
    if not any(type(module) is family for family in FAMILIES.values()):
        raise UserError(
            f"model: is {type(module).__name__}; it must be a name or a model of create_model."
        )
    name = family_of(module)
    by_default = model_kwargs(name)
    fields = {key: getattr(module, key) for key in by_default}
    fields["dtype"] = jnp.dtype(fields["dtype"]).name
    if fields["num_classes"] == by_default["num_classes"]:
        del fields["num_classes"]
    with _imported(recipes.FOLDER / f"{recipes.DEFAULTS}.py") as base, config.unlocked():
        config.model = base.model_section(name, **fields)


@contextlib.contextmanager
def _imported(path: Path) -> Iterator[ModuleType]:
    """Executes a file as a module; within, `configs` is the file's folder and then the package's.

    What was imported as `configs` before is put back at the end.
    """
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_neighbour(name)}
    package = ModuleType(NEIGHBOURS)
    package.__path__ = [str(path.parent), str(recipes.FOLDER)]
    sys.modules[NEIGHBOURS] = package
    try:
        spec = importlib.util.spec_from_file_location(f"{NEIGHBOURS}.{path.stem}", path)
        assert spec is not None and spec.loader is not None  # as of any .py file
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        with _in_one_line(path):
            spec.loader.exec_module(module)
        yield module
    finally:
        for name in filter(_is_neighbour, list(sys.modules)):  # a copy: threads import
            del sys.modules[name]
        sys.modules.update(before)


def _is_neighbour(module: str) -> bool:
    return module.partition(".")[0] == NEIGHBOURS


@contextlib.contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Raises what the code of a recipe raises as a UserError with the file and its line."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}.") from error
    except Exception as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame, path)]
        place = f"{own[-1].filename}, line {own[-1].lineno}" if own else str(path)
        lines = str(error).strip(" '\"").replace("\\n", "\n").splitlines() or [""]
        raise UserError(f"{place}: {type(error).__name__}: {lines[-1]}") from error


def _is_own(frame: traceback.FrameSummary, path: Path) -> bool:
    return Path(frame.filename).parent == path.parent
