"""Facts about a model from outside its tensors, reconciled with the tensors.

A fact is taken from the first of these that has it: the tensors, the arguments of the caller, the
configuration beside the file, the name, the source's own default. Arguments and configurations that
contradict the tensors raise, and so does an architecture of a configuration that has other parts; a
name gives way, with one line in the log. The name is the caller's, the one in the file, or that of
the file itself where its tensors have that model's parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError, with_tuples
from vitswin_jax.models.names import other_library
from vitswin_jax.models.registry import FAMILIES, model_kwargs, resolve_name
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.weights.sources.config import Stated
from vitswin_jax.weights.sources.source import UNSEEN, Fields, Hints, Source

log = logger(__name__)

ADAPTED = frozenset(
    {"img_size", "window_size", "num_classes", "in_chans", "fc_norm", "pos_embed_at", "pre_logits"}
)
"""Arguments that change the model after its file is read; `weights.adapt` changes the tensors."""

UNSEEN_SIZES = {"vit": ("img_size",), "swinv2": ("img_size", "window_size"),
                "swinv2_cr": ("img_size", "window_size")}  # fmt: skip
"""Sizes that a family's file may not show, so that those of the caller may be the file's."""

_NAMED = (
    "img_size", "act", "norm_eps", "num_heads", "embed_dim", "window_size",
    "pretrained_window_sizes",
)  # fmt: skip
"""Fields that a name decides even where its variant has the family's default."""

_SIDES = ("img_size", "patch_size", "window_size")


@dataclass(frozen=True)
class Facts:
    """The facts about a model that are not in its tensors."""

    name: str | None
    """The variant or the family that the caller or the configuration names."""
    asked: Mapping[str, Any]
    """Fields that the caller gives."""
    stated: Stated | None

    @property
    def variant(self) -> str | None:
        """The name of the variant; None for a family, whose fields are defaults of nobody."""
        return None if self.name is None or self.name in FAMILIES else self.name

    @property
    def _row(self) -> Mapping[str, Any]:
        """The fields that the variant differs in from its family's defaults."""
        return {} if self.variant is None else VARIANTS[resolve_name(self.variant)[0]][1]

    @property
    def _config(self) -> Mapping[str, Any]:
        return {} if self.stated is None else {**self.stated.defaults, **self.stated.fields}

    def hints(self, source: Source, root: str) -> Hints:
        """Returns the facts for a file of a source, whose model is under the key `root`."""
        named = dict(self._row)
        if self.variant is not None:
            named |= {key: x for key, x in model_kwargs(self.variant).items() if key in _NAMED}
        sizes = {key: x for key, x in self.asked.items() if key in ("img_size", "window_size")}
        unseen = {key: x for key, x in sizes.items() if key in UNSEEN_SIZES.get(source.family, ())}
        clip = {key: x for key, x in source.numerics.items() if key == "window_clip"}
        asked = {key: x for key, x in self.asked.items() if key not in sizes}
        fields = {**unseen, **clip, **named, **self._config, **asked}
        if "num_heads" in asked or (self.stated and "num_heads" in self.stated.fields):
            fields.pop("embed_dim", None)  # these heads are not only of the named model's width
        stated = {**self._config, **asked}
        named_one = self.variant is not None
        return Hints(fields, sizes, root=root, named=named_one, stated=stated)

    def numerics(self, source: Source) -> Fields:
        """Returns the details that a source's code decides and no tensor shows."""
        unseen = {key: value for key, value in self.asked.items() if key in UNSEEN}
        facts = {**self._row, **self._config, **unseen}
        return {key: facts.get(key, value) for key, value in source.numerics.items()}

    def check(self, path: Path, source: Source, shown: Fields, fields: Fields) -> None:
        """Raises UserError for facts that contradict the tensors, and logs what a name says else.

        `shown` are the fields that the tensors decide, `fields` are all.
        """
        faults = Faults()
        for key, value in self.asked.items():
            if key in shown and key not in ADAPTED and not _same(key, value, shown[key]):
                faults.append(f"{key}={value!r} was given, and the tensors show {shown[key]!r}")
        if self.stated is not None:
            self.stated.check_source(source)
            for key, value in self.stated.fields.items():
                if key in self.asked and key not in ADAPTED:
                    continue  # the caller comes first
                if key in fields and not _same(key, value, fields[key]):
                    faults.append(
                        f"{self.stated.origin} states {key}={value!r}, and the tensors show "
                        f"{fields[key]!r}"
                    )
            labels, classes = self.stated.num_labels, fields["num_classes"]
            if labels is not None and classes and labels != classes:
                faults.append(
                    f"{self.stated.origin} has {labels} names of classes, and the tensors show "
                    f"num_classes={classes}"
                )
        faults.check(f"{path}: ")
        differ = self._differences(fields)
        kinds = self.other_parts(fields)
        if kinds and self.stated is not None and self.stated.variant is not None:
            raise UserError(
                f"{path}: {self.stated.origin} states the architecture {self.stated.variant!r}, "
                f"and the tensors show another: {', '.join(kinds)}."
            )
        if differ:
            log.info("%s: differs from %s: %s", path, self.name, ", ".join(differ.values()))

    def other_parts(self, fields: Fields) -> list[str]:
        """Returns how `fields` differ from the variant's in more than sizes."""
        return [
            text
            for key, text in self._differences(fields).items()
            if key not in ADAPTED and not _is_size(self._row[key])
        ]

    def _differences(self, fields: Fields) -> dict[str, str]:
        known = {**self._config, **self.asked}
        return {
            key: f"{key}={fields[key]!r}, not {value!r}"
            for key, value in self._row.items()
            if key in fields and key not in known and not _same(key, value, fields[key])
        }


def own_name(path: Path, architecture: str | None) -> str | None:
    """Returns the architecture that a file states, if it is a model's name here.

    Training scripts have names of their own, which state nothing. Raises UserError for the name of
    a model that other libraries have.
    """
    if architecture is None:
        return None
    try:
        return architecture if resolve_name(architecture) else None
    except UserError as error:
        if other_library(architecture) is None:
            return None
        raise UserError(f"{path}: states as its architecture: {error}") from error


def name_of_file(path: Path) -> str | None:
    """Returns the variant that a file is called after, as `VARIANT.pth` or timm's `VARIANT.TAG.*`.

    None for any other name, and for that of a family, which says nothing of a model's fields.
    """
    for name in (path.stem, path.name.partition(".")[0]):
        try:
            if resolve_name(name)[0] not in FAMILIES:
                return name
        except UserError:
            continue
    return None


def choose_name(path: Path, name: str | None, stated: Stated | None) -> str | None:
    """Returns the variant of the configuration, else the caller's; logs where they differ.

    Raises UserError for a name that no model here has.
    """
    given = None if name is None else resolve_name(name)[0]
    if stated is None or stated.variant is None:
        return name
    if given not in (None, resolve_name(stated.variant)[0]):
        log.info("%s: %s states %s, not %s", path, stated.origin, stated.variant, name)
    return stated.variant


def _is_size(value: Any) -> bool:
    """Returns whether a field is a size, which tensors show whatever the name is."""
    return isinstance(value, int | float | tuple) and not isinstance(value, bool)


def _same(key: str, stated: Any, shown: Any) -> bool:
    stated = with_tuples(stated)
    if key == "init_values":  # no trained file shows where LayerScale began
        return bool(stated) == bool(shown)
    if key == "qkv_bias" and isinstance(stated, bool) and isinstance(shown, str):
        return stated  # timm states that there are some
    if key in _SIDES:
        return _sides(stated) == _sides(shown)
    if isinstance(stated, int | float) and isinstance(shown, int | float):
        return math.isclose(stated, shown, rel_tol=1e-6)
    return stated == shown


def _sides(size: Any) -> Any:
    """Returns a size, of one window or of each stage's, with both of its sides."""
    if isinstance(size, int):
        return (size, size)
    return tuple(map(_sides, size)) if any(isinstance(side, tuple) for side in size) else size
