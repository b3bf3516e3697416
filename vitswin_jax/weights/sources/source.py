"""A source: the files of one original and one family, and the conventions of its code."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitswin_jax.weights import resize
from vitswin_jax.weights.formats.tensors import Tensor, Tensors
from vitswin_jax.weights.sources.rules import Rule, gather

Fields = dict[str, Any]
Named = Mapping[str, list[Tensor]]
"""Our names to their tensors: what `describe` reads fields from."""
Prepared = tuple[dict[str, Tensor], list[str]]
"""Tensors under the names of the rules, and the names of those that nothing needs."""

BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")
"""How the names of tensors end that follow from sizes alone; their numbers are not read."""

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}

SATELLITE = {"mean": (0.43, 0.411, 0.296), "std": (0.213, 0.156, 0.143)}

SOME = "some"
"""Among the values of `Source.holds`: any but None, 0 and False."""

UNGATED = ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu")
"""Activations of a plain MLP, whose layers have other shapes than a gated one's."""

UNSEEN: Mapping[str, Any] = {
    "norm_layer": "layernorm", "norm_at": "before", "rope_type": "none",
    "rope_temperature": 10_000.0, "rope_grid_offset": 0.0, "rope_grid_indexing": "ij",
    "rope_rotate_half": False, "rope_ref_grid": None, "rope_dtype": "float32",
    "pool_include_prefix": False, "pool_heads": None,
}  # fmt: skip
"""Fields of a ViT that no tensor shows, with the value that a plain one has."""

_PLAIN = {  # fields that not every code has, with the one value that is as good as without
    "dist_token": False, "dist_head": True, "reg_tokens": 0, "init_values": None, "pre_norm": False,
    "fc_norm": False, "patch_norm": False, "qkv_bias": True, "patch_bias": True,
    "no_embed_class": False, "pre_logits": None, "resnet_layers": None, "class_token": True,
    "pos_embed": "learned", "pos_embed_at": "input", "global_pool": "token", "qk_norm": False,
    "scale_attn_norm": False, "proj_bias": True, "mlp_bias": True, "scale_mlp_norm": False,
    "final_norm": True, "pool_mlp_ratio": None, **UNSEEN,
}  # fmt: skip


def only(*free: str, **allowed: tuple[Any, ...]) -> Mapping[str, tuple[Any, ...]]:
    """Returns the fields that a ViT's code can compute: a plain ViT's, free and allowed ones."""
    plain = {name: (value,) for name, value in _PLAIN.items()} | {"act": UNGATED}
    return {name: values for name, values in plain.items() if name not in free} | allowed


_OURS = {"stem": ((),), "shift_windows": (True,), "relative_bias": (True,)}
"""Fields that no original's code has, with the value that is as good as without."""


def misfits(holds: Mapping[str, tuple[Any, ...]], fields: Mapping[str, Any]) -> list[str]:
    """Returns the fields with values that a code, of which `holds` are all, cannot have."""
    return [
        field
        for field, values in {**holds, **_OURS}.items()
        if field in fields and fields[field] not in values
        if SOME not in values or not fields[field]
    ]


class Hints(dict[str, Any]):
    """Fields that the tensors may leave open, the first fact of each.

    The sizes that the caller asks for are in `asked`: they may be those of the file, or those that
    its tables shall be resized to. `stated` are the facts of the caller and of the configuration,
    not of the name. `root` is the key that the model is under in its file, and `named` whether a
    name or a configuration says which architecture it is.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        asked: Mapping[str, Any],
        *,
        root: str,
        named: bool,
        stated: Mapping[str, Any] = types.MappingProxyType({}),
    ) -> None:
        super().__init__(fields)
        self.named = named
        self.asked = dict(asked)
        self.root = root
        self.stated = stated

    def with_fields(self, **fields: Any) -> Hints:
        """Returns the same facts with other fields."""
        return Hints(
            {**self, **fields},
            self.asked,
            root=self.root,
            named=self.named,
            stated=self.stated,
        )


@dataclass(frozen=True)
class Source:
    """The recognition, description and reading of an original's files."""

    name: str
    """As messages have it."""
    format: str
    """As `save_pretrained(format=)` has it: whose format it is."""
    family: str
    marks: tuple[str, ...]
    """Expressions; a file is this source's where each fits a key of it, in full."""
    rules: tuple[Rule, ...]
    describe: Callable[[Named, Tensors, Hints], Fields]
    """Returns the fields that tensors, under our names and under theirs, or else hints show."""
    numerics: Mapping[str, Any]
    """The fields that are the original code's, and in no file."""
    prepare: Callable[[Tensors], tuple[Tensors, list[str]]] = lambda tensors: (tensors, [])
    """Returns the tensors under the names that the rules have, and the names that are left out."""
    pos_embed: resize.Method = resize.bicubic
    """How its code resizes position embeddings."""
    bias_table: resize.Method = resize.bicubic
    """How its code resizes tables of relative position biases."""
    head_rows: Callable[[int, int], Sequence[int] | None] = lambda old, new: None
    """From (classes of the file, classes wanted): the rows its code maps a head by, if it does."""
    preprocess: Mapping[str, Any] | Callable[[Fields, str], Mapping[str, Any]] = field(
        default_factory=lambda: IMAGENET
    )
    """Fields of `Preprocess`: how its code gives images to these models; or a function to them
    from the model's fields and the name that the user gives, "" if none."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Names to the number of axes that their tensors have, where names alone are another's."""
    root: str = ""
    """How its roots end, where nothing else tells it from another source."""
    holds: tuple[Mapping[str, tuple[Any, ...]], ...] = ()
    """What its code can compute: fields to the values they may have, others are free; any of
    several, and none for a source that is only read."""
    prefix: str = ""
    """What its published files have before every name that `prepare` returns."""
    base: str = ""
    """What its rules have before the names of the base model, beside which heads are."""
    bare: bool = False
    """Whether files of the base model alone have no `base` in their names."""
    wrapper: str | None = None
    """Under what key its published `.pth` files have the state dict."""
    buffers: tuple[str, ...] = ()
    """Which of `BUFFERS` its files have."""
    restore: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda arrays: arrays
    """Undoes, in what is written, the arithmetic of `prepare`."""

    def lost_biases(self, shown: Fields) -> Fields:
        """Returns as true the biases that a file does not show and that its code always has.

        A file without one has lost it. The rules then name it, where a model without it would load.
        """
        wrong = min((misfits(holds, shown) for holds in self.holds), key=len, default=[])
        return {name: True for name in wrong if name.endswith("_bias") and not shown[name]}

    def fits(self, tensors: Tensors, root: str = "") -> bool:
        """Returns whether keys that a file has under a root are this source's."""
        if self.root and not re.search(rf"(^|[./]){re.escape(self.root)}$", root):
            return False
        if any(name in tensors and len(tensors[name].shape) != n for name, n in self.ranks.items()):
            return False
        return all(any(re.fullmatch(mark, name) for name in tensors) for mark in self.marks)

    def named(self, tensors: Tensors) -> Named:
        """Returns the tensors that have a place, under our names."""
        return gather(tensors, self.rules)


def count(names: Mapping[str, Any], template: str) -> int:
    """Returns how many of the names `template.format(0)`, `template.format(1)`, ... there are."""
    i = 0
    while template.format(i) in names:
        i += 1
    return i


def patch_fields(named: Named, *, torch: bool) -> Fields:
    """Returns the fields that the patch embedding's kernel shows; PyTorch's is OIHW."""
    kernel = named["patch_embed/proj/kernel"][0].shape
    if torch:
        kernel = (*kernel[2:], kernel[1], kernel[0])
    height, width, channels, embed_dim = kernel
    return {
        "patch_size": height if height == width else (height, width),
        "in_chans": channels,
        "embed_dim": embed_dim,
    }


def resnet_fields(named: Named, *, torch: bool) -> Fields:
    """Returns the fields that a hybrid's ResNet shows: nothing where there is none."""
    if "backbone/root_conv/kernel" not in named:
        return {}
    layers: list[int] = []
    unit = "backbone/stage_{}/block_{{}}/conv1/kernel"
    while blocks := count(named, unit.format(len(layers))):
        layers.append(blocks)
    shape = named["backbone/root_conv/kernel"][0].shape
    return {"resnet_layers": tuple(layers), "in_chans": shape[1] if torch else shape[2]}


def query_value_biases(block: str, joint: Tensor) -> dict[str, Tensor]:
    """Returns the thirds of a joint bias that are of queries and of values, by their names."""
    third = joint.shape[0] // 3
    return {
        f"{block}q_bias": joint.rows(0, third),
        f"{block}v_bias": joint.rows(2 * third, 3 * third),
    }


def square(area: int) -> int | None:
    """Returns the side of a square, or None where the area is no square's."""
    side = math.isqrt(max(area, 0))
    return side if side * side == area and area > 0 else None
