"""Overrides of a config on a command line: "--section.key=value", and short flags."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from vitswin_jax.core.types import UserError
from vitswin_jax.models.registry import sized_fields
from vitswin_jax.train.keep.workdir import flatten

SHORT = {
    "epochs": "optim.epochs",
    "batch-size": "data.batch_size",
    "lr": "optim.peak_lr",
    "img-size": "model.img_size",
    "seed": "seed",
    "init-from": "init_from",
}
"""Flags of the frequent keys -> the key."""

INSTEAD = {"optim.epochs": ("optim.total_steps", "optim.examples")}
"""A key that a short flag sets -> the keys that say the same in another unit, which it clears."""

KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a tuple, such as (1,2)",
    str: "a text",
}

SIZED = "a whole number, or HEIGHTxWIDTH such as 224x160"
"""What fields are given that may be one number or two (`sized_fields`)."""

_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError, SyntaxError)
_NEAR = 3  # keys that a message suggests at most


@dataclass(frozen=True)
class Override:
    """A change of one key: the flag as it was typed, the key, and the value; None: none was."""

    flag: str
    key: str
    value: str | None


def parse_override(text: str) -> Override:
    """Parses "--section.key=value"; "--config.section.key=value" is the same."""
    flag, equals, value = text.partition("=")
    key = flag.removeprefix("--").removeprefix("config.")
    return Override(flag, key, value if equals else None)


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Changes a config by "--section.key=value" each; raises UserError for what cannot be."""
    for text in overrides:
        if not text.startswith("--"):
            raise UserError(f"unexpected {text}; a key is set by --section.key=value.")
        apply(config, parse_override(text))


def check_known(overrides: Iterable[Override], keys: Iterable[str], also: Iterable[str]) -> None:
    """Raises UserError, with the nearest, for the first override of a key that is not in `keys`.

    `also` are the command's other flags, such as "--workdir", which the user may have meant.
    """
    keys = list(keys)
    for override in overrides:
        if override.key not in keys:
            raise UserError(_unknown(override, keys, also))


def apply(config: ConfigDict, override: Override, *, also: Iterable[str] = ()) -> None:
    """Sets one key; raises UserError for an unknown one and for a wrong value (`check_known`)."""
    keys = config_keys(config)
    check_known([override], keys, also)
    section, _, name = override.key.rpartition(".")
    where = config[section] if section else config
    kind = where.get_type(name)
    sized = _is_sized(config, override.key)
    text = "true" if override.value is None and kind is bool else override.value
    try:
        if sized and text != "None":
            with where.ignore_type():
                where[name] = _parse_size(text)
            return
        value = None if text == "None" else _parse(kind, text)
        config.update_from_flattened_dict({override.key: value})
    except _ERRORS as error:
        now = "" if keys[override.key] is None else f"; now it is {keys[override.key]!r}"
        given = f"; write {override.flag}=VALUE" if text is None else f", not {text!r}"
        needs = SIZED if sized else KINDS.get(kind, "a value")
        raise UserError(f"{override.flag} needs {needs}{given}{now}.") from error


def set_keys(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets keys, "section.key", to values of Python; raises UserError for what cannot be."""
    for key, value in values.items():
        keys = config_keys(config)
        check_known([Override(key, key, None)], keys, ())
        section, _, name = key.rpartition(".")
        where = config[section] if section else config
        sized = _is_sized(config, key)
        needs = SIZED if sized else KINDS.get(where.get_type(name), "a value")
        try:
            if sized and _is_size(value):
                with where.ignore_type():
                    where[name] = value if isinstance(value, int) else tuple(value)
            else:
                config.update_from_flattened_dict({key: value})
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{key} needs {needs}, not {value!r}; now it is {keys[key]!r}."
            ) from error


def _is_sized(config: ConfigDict, key: str) -> bool:
    """Returns whether a key is a field that may be one number or two (`sized_fields`)."""
    section, _, name = key.rpartition(".")
    return section == "model" and name in sized_fields(config.model.get("name", "vit"))


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, tuple | list) else (value,)
    return len(sides) in (1, 2) and all(isinstance(side, int) for side in sides)


def set_short(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets the keys of SHORT that are not None, and clears those that say the same."""
    given = {SHORT[name]: value for name, value in values.items() if value is not None}
    cleared = [key for name in given for key in INSTEAD.get(name, ())]
    set_keys(config, dict.fromkeys(cleared) | given)


def _parse(kind: type, text: str | None) -> Any:
    """Returns a text as ml_collections reads it for a key of this type; raises one of _ERRORS."""
    if text is None:
        raise ValueError("there is no value")
    values = flags.FlagValues()
    argv = ["", f"--config.key={text}"]
    config_flags.DEFINE_config_dict(
        "config", ConfigDict({"key": placeholder(kind)}), flag_values=values, sys_argv=argv
    )
    values(argv)
    return values.config.key


def _parse_size(text: str | None) -> Any:
    """Returns a field of `sized_fields` from 224, 224x160 or a tuple; raises one of _ERRORS."""
    if text is None or set("(,") & set(text):
        return _parse(tuple, text)
    sides = tuple(map(int, text.lower().split("x")))
    if len(sides) > 2:
        raise ValueError(text)
    return sides if len(sides) == 2 else sides[0]


def _unknown(override: Override, keys: Iterable[str], also: Iterable[str]) -> str:
    """Returns the line about an unknown key, with the nearest by its last part and as a whole."""
    name = override.key.rpartition(".")[2]
    by_last: dict[str, list[str]] = {}
    for key in keys:
        by_last.setdefault(key.rpartition(".")[2], []).append(f"--{key}")
    known = [*also, *(f"--{key}" for key in keys)]
    parts = difflib.get_close_matches(name, by_last, n=1, cutoff=0.75)
    near = by_last.get(name, [])
    near += difflib.get_close_matches(f"--{override.key}", known, n=1, cutoff=0.75)
    near += [key for part in parts for key in by_last[part]]
    found = list(dict.fromkeys(near))[:_NEAR]
    hint = f"did you mean {' or '.join(found)}?" if found else "`vitswin config RECIPE` lists them."
    return f"{override.flag}: there is no such flag or key; {hint}"


def config_keys(config: ConfigDict) -> dict[str, Any]:
    """Returns a config's keys, joined by dots, and their values, in its order."""
    return flatten(config.to_dict())
