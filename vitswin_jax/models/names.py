"""Model names: a variant, published weights of one, or a model of another library.

A name that no model has is refused. A suggestion is made only for what can be a slip of the pen:
`vit_base_patch16_rope_224` is another model than `vit_base_patch16_224`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vitswin_jax.core.types import UserError, listed
from vitswin_jax.models.aliases import ALIASES, ENDINGS, MICROSOFT_ENDINGS, RENAMED
from vitswin_jax.models.tags import tags_of
from vitswin_jax.models.variants import VARIANTS

FAMILY_NAMES = tuple(dict.fromkeys(family for family, _ in VARIANTS.values()))

LIBRARIES = {
    "timm": "a model of timm",
    "torchvision": "a model of torchvision",
    "transformers": "a model_type of transformers",
    "open_clip": "a model of open_clip",
}
"""Sections of `other_names.txt` -> what the names in them are."""

_SHOWN = 8  # tags in a message


class Named(NamedTuple):
    """The meaning of a name."""

    variant: str
    """The variant, or the family."""
    tag: str | None = None
    """The tag of the weights that the name is of, if it tells them."""
    num_classes: int | None = None
    """The classes of these weights."""


def parse_name(name: str) -> Named:
    """Returns the meaning of any name of a model.

    Besides our own (timm's) names: the ViT papers' (`B/16`, `ViT-B_16`, `R50+ViT-B_16-384`),
    Microsoft's (`swinv2_tiny_patch4_window8_256`, `..._22k`), timm's `name.tag`, and its names from
    before it had tags. Raises UserError for any other: a tag that is unknown, a model that another
    library has, or a misspelt name, with the right one.
    """
    base, dot, tag = _renamed(name).partition(".")
    base = ALIASES.get(base, base)
    if base not in VARIANTS and base not in FAMILY_NAMES:
        if (microsofts := _microsofts(base)) is not None:
            return microsofts
        raise UserError(_no_such_model(name, base))
    if not dot:
        return Named(base)
    tags = tags_of(base)
    if tag not in tags:
        raise UserError(_no_such_tag(base, tag, tags))
    return Named(base, tag, tags[tag].num_classes)


def _microsofts(name: str) -> Named | None:
    """Returns the meaning of a name with one of Microsoft's endings; None for other names."""
    for ending, classes in MICROSOFT_ENDINGS.items():
        stem = name.removesuffix(ending)
        stem = ALIASES.get(stem, stem)
        if name.endswith(ending) and stem.startswith("swin") and stem in VARIANTS:
            return Named(stem, None, classes)
    return None


def _renamed(name: str) -> str:
    """Returns `variant.tag` for a name that timm had before it had tags; others as they are."""
    for ending, tag in ENDINGS:
        stem = name.removesuffix(ending)
        if name != stem and tag in tags_of(stem):
            return f"{stem}.{tag}"
    return RENAMED.get(name, name)


def _no_such_tag(variant: str, tag: str, tags: Iterable[str]) -> str:
    tags = list(tags)
    if not tags:
        return f"{variant} has no tags; give the name without .{tag}"
    shown = ", ".join(tags[:_SHOWN]) + ", ..." * (len(tags) > _SHOWN)
    hint = nearest_name(tag, tags) or "; give one, or the name without a tag."
    return f"{variant} has no tag {tag!r} in timm; its tags are {shown}{hint}"


def _no_such_model(name: str, base: str) -> str:
    if (library := other_library(base)) is not None:
        return (
            f"{name!r} is {LIBRARIES[library]}, and vitswin_jax has no such model; `vitswin "
            "models` lists those it has."
        )
    hint = nearest_name(base, [*VARIANTS, *ALIASES, *RENAMED, *FAMILY_NAMES])
    longer = sorted(variant for variant in VARIANTS if variant.startswith(f"{base}_"))
    if longer and not hint:
        hint = f"; there are {listed(longer)}; `vitswin models {base}` lists them."
    return f"no model is called {name!r}{hint or '; `vitswin models` lists all.'}"


def other_library(name: str) -> str | None:
    """Returns the library that has a model of this name which is not here; None: none is known."""
    names = _other_names()
    spelled = (library for other, library in names.items() if _words(other) == _words(name))
    return names.get(name) or next(spelled, None)


@functools.cache
def _other_names() -> Mapping[str, str]:
    names: dict[str, str] = {}
    library = ""
    for line in Path(__file__).with_name("other_names.txt").read_text().splitlines():
        if line.startswith("["):
            library = line.strip("[]")
        elif not line.startswith("#"):
            names |= dict.fromkeys(line.split(), library)
    return names


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for a known name that `name` may be a misspelling of, or "".

    Names are words with marks between them. A misspelt word of three or more letters or digits has
    one too few, one too many or another one, or two in each other's place. A word that the name of
    any model has is no misspelling, and neither is a word with another number in it.
    """
    known = list(known)
    words = _words(name)
    names = (*known, *VARIANTS, *_other_names())
    vocabulary = {word for other in names for word in _words(other)}
    slips = {other: _slips(words, _words(other), vocabulary) for other in known}
    near = [(count, other) for other, count in slips.items() if count is not None]
    return f"; did you mean {min(near)[1]!r}?" if near else ""


def _slips(words: Sequence[str], others: Sequence[str], vocabulary: set[str]) -> int | None:
    """Returns how many words of a name are misspellings of another's; None: some are not."""
    if "".join(words) == "".join(others):
        return 0
    pairs = [(a, b) for a, b in zip(words, others, strict=False) if a != b]
    if len(words) != len(others) or len(pairs) > 2:
        return None
    return len(pairs) if all(a not in vocabulary and _slip(a, b) for a, b in pairs) else None


def _slip(word: str, other: str) -> bool:
    """Returns whether a word is another with one slip of the pen."""
    if len(other) < 3:
        return False
    if not word.isdigit() and re.findall(r"\d+", word) != re.findall(r"\d+", other):
        return False
    while word and other and word[0] == other[0]:
        word, other = word[1:], other[1:]
    while word and other and word[-1] == other[-1]:
        word, other = word[:-1], other[:-1]
    return max(len(word), len(other)) <= 1 or (len(word) == 2 and word == other[::-1])


@functools.cache
def _words(name: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W_]+", name.casefold()))
