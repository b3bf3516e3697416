"""Parameter groups: freezing, weight decay and learning rates, by tables of (pattern, number).

A pattern is a regular expression of a whole path in loop layout, such as `block_3/attn/qkv/kernel`;
the first that matches rules. Stacked blocks have the paths of their rows.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import Params, UserError
from vitswin_jax.nn.params import facts, uncovered
from vitswin_jax.nn.scan import row_paths

T = TypeVar("T")
Table = Sequence[tuple[str, float]]

# What stands before the first block is layer 0, block i is layer i + 1, counted through all stages,
# and the rest is the last layer. A merging belongs to the last block of its stage, and Swin's
# absolute position embedding to the last layer: microsoft/Swin-Transformer, `get_swin_layer`;
# ViT: microsoft/unilm, `get_num_layer_for_vit` (BEiT, and MAE after it).
# A norm before the blocks is of the first layer: timm, `VisionTransformer.group_matcher`.
# A model that is pre-trained has all this in its encoder; its decoder is of the last layer.
FIRST_LAYER = (
    r"(?:encoder/)?"
    r"(cls_token|dist_token|reg_token|mask_token|pos_embed(_[xy])?"
    r"|norm_pre/.*|patch_embed/.*|backbone/.*)"
)
BLOCK = r"(?:encoder/)?(?:stage_(\d+)/)?(?:(?:block|norm)_(\d+)|downsample)/.*"


def path_of(path: tuple[Any, ...]) -> str:
    """Returns a leaf's names joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _rows(path: str, leaf: Any) -> list[str]:
    return row_paths(path, np.shape(leaf)) or [path]


def _first(path: str, table: Table, otherwise: T) -> float | T:
    return next((value for pattern, value in table if re.fullmatch(pattern, path)), otherwise)


def map_rows(value_of: Callable[[str], float], params: Params) -> Params:
    """Returns a tree of what `value_of` says of each leaf's path, a float.

    A stacked leaf whose rows differ has an array of them, which broadcasts against the leaf.
    """

    def value(path: tuple[Any, ...], leaf: Any) -> float | np.ndarray:
        values = [value_of(row) for row in _rows(path_of(path), leaf)]
        if len(set(values)) == 1:
            return values[0]
        return np.asarray(values, np.float32).reshape(-1, *[1] * (np.ndim(leaf) - 1))

    return jax.tree_util.tree_map_with_path(value, params)


def all_paths(params: Params) -> list[str]:
    """Returns the path of every parameter, in loop layout."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return [row for path, leaf in leaves for row in _rows(path_of(path), leaf)]


def decay_mask(params: Params) -> Params:
    """Returns a tree of booleans: which parameters weight decay shrinks.

    Raises ValueError that lists every path that `nn.params` does not cover.
    """
    return jax.tree.map(bool, Groups().decay_scales(params))


def layer_depths(paths: Sequence[str]) -> dict[str, int]:
    """Returns each path's distance from the last layer, which has the norm and the head: 0.

    A ViT of depth n has distances up to n + 1, a Swin up to the sum of its depths, and 1.
    """
    blocks: dict[int, int] = {}  # stage -> its number of blocks
    for path in paths:
        if (match := re.fullmatch(BLOCK, path)) and match[2]:
            stage = int(match[1] or 0)
            blocks[stage] = max(blocks.get(stage, 0), int(match[2]) + 1)
    last = sum(blocks.values()) + 1

    def layer(path: str) -> int:
        if re.fullmatch(FIRST_LAYER, path):
            return 0
        if not (match := re.fullmatch(BLOCK, path)):
            return last
        stage = int(match[1] or 0)
        before = sum(count for other, count in blocks.items() if other < stage)
        return before + (blocks[stage] if match[2] is None else int(match[2]) + 1)

    return {path: last - layer(path) for path in paths}


@dataclass(frozen=True)
class Groups:
    """The settings of `config.optim` for single parameters.

    `lr_mults` multiply the rate. `decay_mults` replace the factors of `nn.params`, 0 or 1.
    `freeze` are patterns of what does not train; with `train_only`, nothing else trains.
    `layer_decay`, in (0, 1], multiplies the rate once for each layer after the parameter's own.
    Raises UserError for what is no such table.
    """

    lr_mults: Sequence[Any] = ()  # of pairs, which is checked here, as users write them
    decay_mults: Sequence[Any] = ()
    freeze: Sequence[str] = ()
    train_only: Sequence[str] = ()
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        faults, decay = Faults(), self.layer_decay
        for key in ("lr_mults", "decay_mults"):
            faults += _wrong_pairs(key, getattr(self, key))
        for key in ("freeze", "train_only"):
            faults += _wrong_patterns(key, getattr(self, key))
        fits = decay is None or 0 < decay <= 1
        faults.need(fits, f"optim.layer_decay={decay} must be above 0 and at most 1")
        faults.check()

    def check(self, params: Params) -> None:
        """Raises UserError for patterns that match nothing, and where nothing is left to train."""
        paths = all_paths(params)
        tables = {
            "lr_mults": [pattern for pattern, _ in self.lr_mults],
            "decay_mults": [pattern for pattern, _ in self.decay_mults],
            "freeze": self.freeze,
            "train_only": self.train_only,
        }
        Faults(
            f"optim.{key}: {pattern!r} matches no parameter; the nearest are "
            f"{', '.join(difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0))}"
            for key, patterns in tables.items()
            for pattern in patterns
            if not any(re.fullmatch(pattern, path) for path in paths)
        ).check()
        if not any(jax.tree.leaves(self.trained(params))):
            raise UserError("optim: freeze and train_only leave no parameter to train.")

    @property
    def freezes(self) -> bool:
        """Whether anything at all is frozen."""
        return bool(self.freeze or self.train_only)

    def _trains(self, path: str) -> bool:
        def matches(patterns: Sequence[str]) -> bool:
            return any(re.fullmatch(pattern, path) for pattern in patterns)

        return not matches(self.freeze) and (not self.train_only or matches(self.train_only))

    def trained(self, params: Params) -> Params:
        """Returns a tree of booleans: which parameters train.

        Raises UserError for a stack of blocks of which only some are frozen.
        """

        def trains(path: tuple[Any, ...], leaf: Any) -> bool:
            rows = {row: self._trains(row) for row in _rows(path_of(path), leaf)}
            if len(set(rows.values())) > 1:
                frozen = next(row for row, trains in rows.items() if not trains)
                raise UserError(
                    f"optim: {frozen} is frozen and other blocks are not, which needs "
                    "config.model.scan=False."
                )
            return all(rows.values())

        return jax.tree_util.tree_map_with_path(trains, params)

    def stop_gradients(self, params: Params) -> Params:
        """Returns the same parameters, the frozen ones constant: their gradients are zeros."""
        if not self.freezes:
            return params
        return jax.tree.map(
            lambda leaf, trains: leaf if trains else jax.lax.stop_gradient(leaf),
            params,
            self.trained(params),
        )

    def lr_scales(self, params: Params) -> Params:
        """Returns a tree of what multiplies the rate of each parameter; `params` are all."""
        distances = layer_depths(all_paths(params))
        base = 1.0 if self.layer_decay is None else self.layer_decay
        return map_rows(
            lambda path: _first(path, self.lr_mults, 1.0) * base ** distances[path], params
        )

    def decay_scales(self, params: Params) -> Params:
        """Returns a tree of what multiplies the weight decay of each parameter, 0 for none.

        Raises ValueError that lists every path that neither `decay_mults` nor `nn.params` covers.
        """

        def given(path: str) -> float | None:
            return _first(path, self.decay_mults, None)

        if without := uncovered(path for path in all_paths(params) if given(path) is None):
            raise ValueError(f"no row of PARAMETERS covers {', '.join(without)}.")
        return map_rows(
            lambda path: facts(path).decay if (own := given(path)) is None else own, params
        )


def _wrong_patterns(key: str, patterns: Any) -> list[str]:
    if isinstance(patterns, str) or not all(isinstance(each, str) for each in patterns):
        return [f'optim.{key}={patterns!r} must be patterns, such as ("head/.*",)']
    return [
        f"optim.{key}: {pattern!r} is no regular expression ({error})"
        for pattern in patterns
        if (error := _regex_error(pattern))
    ]


def _wrong_pairs(key: str, table: Any) -> list[str]:
    pairs = [each for each in table if isinstance(each, list | tuple) and len(each) == 2]
    if isinstance(table, str) or len(pairs) != len(table):
        return [f'optim.{key}={table!r} must be pairs, such as (("head/.*", 10.0),)']
    wrong = _wrong_patterns(key, tuple(pattern for pattern, _ in pairs))
    lowest = "above 0; optim.freeze stops it" if key == "lr_mults" else "0 or more"
    return wrong + [
        f"optim.{key}: the number of {pattern!r} is {value!r}, and must be {lowest}"
        for pattern, value in pairs
        if not isinstance(value, int | float) or value < 0 or (value == 0 and key == "lr_mults")
    ]


def _regex_error(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return None
