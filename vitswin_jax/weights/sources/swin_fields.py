"""Fields of a Swin Transformer from its file, and its keys prepared for the rules."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping

import numpy as np

from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.tensors import Tensor, Tensors
from vitswin_jax.weights.sources.rules import rename
from vitswin_jax.weights.sources.source import (
    Fields,
    Hints,
    Named,
    Prepared,
    count,
    patch_fields,
    square,
)
from vitswin_jax.weights.sources.swin_sizes import complete, find_sizes, image_size

log = logger(__name__)

PRETRAINED_WINDOWS: dict[tuple[int, int], tuple[tuple[int, ...], ...]] = {
    (128, 16): ((0, 0, 0, 0), (12, 12, 12, 6)),  # base: from scratch at 256, or 192to256
    (192, 16): ((12, 12, 12, 6),),  # large: 192to256
    (128, 24): ((12, 12, 12, 6),),  # 192to384
    (192, 24): ((12, 12, 12, 6),),
}
"""Width and window to the windows of published V2 models before fine-tuning; others have none."""

V2_SIZES = {8: 256, 12: 192, 16: 256, 24: 384}
"""Window to image size, of published V2 models."""


def describe_swin(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns a V1's fields; windows are in its bias tables, and sizes in its buffers.

    Without buffers the image size is that of the hints whose windows the tables have, or else the
    one that gives the last stage one window, as every published model has it.
    """
    table = "attn/relative_position_bias_table"
    fields = common_fields(named, f"stage_{{}}/block_0/{table}", heads_axis=1)
    stages = range(len(fields["depths"]))
    rows = [named[f"stage_{stage}/block_0/{table}"][0].shape[0] for stage in stages]
    image = image_size(named, tensors, fields)
    return fields | find_sizes(rows, image, fields, hints, lambda h, w: (2 * h - 1) * (2 * w - 1))


def describe_swin_mlp(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns a Swin-MLP's fields; windows and heads are in its matrices."""
    matrix = "stage_{}/block_0/spatial_mlp/kernel"  # (heads * n, n, 1) over there
    fields = common_fields(named, matrix, heads_axis=0)
    rows = fields["num_heads"]
    places = [named[matrix.format(stage)][0].shape[1] for stage in range(len(rows))]
    heads = tuple(n // m for n, m in zip(rows, places, strict=True))
    fields |= {"num_heads": heads, "qkv_bias": True}  # a default, for there is no attention
    return fields | find_sizes(
        places, image_size(named, tensors, fields), fields, hints, operator.mul
    )


def describe_swin_v2(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns a V2's fields; windows are in its buffers alone, or else the hints'.

    Raises UserError, with the candidates, where neither shows the windows, or those it was
    pre-trained with.
    """
    fields = common_fields(named, "stage_{}/block_0/attn/logit_scale", heads_axis=0)
    fields["qkv_bias"] = "stage_0/block_0/attn/q_bias" in named
    return fields | _buffered_windows(named, tensors, fields, hints, PRETRAINED_WINDOWS)


def describe_swin_moe(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns a Swin-MoE's fields; windows are in its buffers, as V2's are."""
    fields = common_fields(named, "stage_{}/block_0/attn/cpb_mlp/fc2/kernel", heads_axis=0)
    experts = "stage_{}/block_1/mlp/fc1_kernel"
    stages = [s for s in range(len(fields["depths"])) if experts.format(s) in named]
    fields |= {
        "moe_stages": tuple(stages),
        "num_experts": named[experts.format(stages[0])][0].shape[0],
        "mlp_out_bias": "stage_0/block_0/mlp/fc2/bias" in named,
        "router": "cosine"
        if f"stage_{stages[0]}/block_1/mlp/router/sim_matrix" in named
        else "linear",
    }
    return fields | _buffered_windows(named, tensors, fields, hints, {})


def _buffered_windows(
    named: Named,
    tensors: Tensors,
    fields: Fields,
    hints: Hints,
    known: Mapping[tuple[int, int], tuple[tuple[int, ...], ...]],
) -> Fields:
    """Returns windows and sizes from buffers, or else the hints', and the windows before them.

    `known` has the windows before, by width and window, of models that are published.
    """
    stages = range(len(fields["depths"]))
    places = complete(_buffer_places(tensors, stage) for stage in stages)
    if places is None:
        fields = fields | hinted_windows(hints, "no buffers of its windows")
    else:
        image = image_size(named, tensors, fields)
        fields = fields | find_sizes(places, image, fields, hints, operator.mul)
    windows = None if places is None else complete(map(square, places))
    before = None if windows is None else _pretrained_windows(tensors, windows)
    if before is None and len(hints.get("pretrained_window_sizes", ())) == len(stages):
        before = hints["pretrained_window_sizes"]
    if before is None:
        published = known.get((fields["embed_dim"], fields["window_size"]), ())
        if len(published) > 1:
            raise UserError(
                "the file does not show the windows it was pre-trained with; give a name, or "
                f"pretrained_window_sizes=: {' or '.join(map(str, published))}."
            )
        before = published[0] if published else (0,) * len(stages)
    return fields | {"pretrained_window_sizes": tuple(before)}


def common_fields(named: Named, heads: str, *, heads_axis: int) -> Fields:
    """Returns the fields that every Swin's file shows; the tensor `heads` of a stage has heads."""
    fields = patch_fields(named, torch=True)
    dim = fields["embed_dim"]
    stages = range(count(named, "stage_{}/block_0/norm1/scale"))
    return fields | {
        "num_classes": named["head/bias"][0].size if "head/bias" in named else 0,
        "depths": tuple(count(named, f"stage_{s}/block_{{}}/norm1/scale") for s in stages),
        "num_heads": tuple(named[heads.format(s)][0].shape[heads_axis] for s in stages),
        "mlp_ratio": named["stage_0/block_0/mlp/fc1/bias"][0].size / dim,
        "qkv_bias": "stage_0/block_0/attn/qkv/bias" in named,
        "ape": "absolute_pos_embed" in named,
        "patch_norm": "patch_embed/norm/scale" in named,
    }


def hinted_windows(hints: Hints, found: str) -> Fields:
    """Returns the windows of the hints; raises UserError, with what was `found`, without any."""
    if "window_size" not in hints:
        raise UserError(
            f"the file has {found}, which do not show window_size; give a name, or "
            f"window_size= and img_size=: {', '.join(f'{w} at {s}' for w, s in V2_SIZES.items())}."
        )
    return {field: hints[field] for field in ("window_size", "img_size") if field in hints}


def _buffer_places(tensors: Tensors, stage: int) -> int | None:
    """Returns how many places the windows of a stage have, by its buffers."""
    place = re.compile(rf"(?:.*\.)?layers\.{stage}\.blocks\.0\..*\.(relative_.*)")
    for name, tensor in tensors.items():
        if found := place.fullmatch(name):
            if found[1] == "relative_coords_table":
                return (tensor.shape[1] + 1) // 2 * ((tensor.shape[2] + 1) // 2)
            if found[1] == "relative_position_index":
                return tensor.shape[0]
    return None


def _pretrained_windows(tensors: Tensors, windows: list[int]) -> tuple[int, ...] | None:
    """Returns each stage's pre-training window (0: its own) by coordinate tables; None: unknown.

    The largest number of a table is log2(1 + 8 r) / 3, where r is the ratio of the largest offset
    to that of the pre-training window.
    """
    found = []
    for stage, window in enumerate(windows):
        place = re.compile(rf"(?:.*\.)?layers\.{stage}\.blocks\.0\..*\.relative_coords_table")
        tables = [tensor for name, tensor in tensors.items() if place.fullmatch(name)]
        top = float(np.max(tables[0].read())) if tables else 0.0
        if top <= 0 or window == 1:
            return None
        before = round(8 * (window - 1) / (8**top - 1)) + 1
        found.append(0 if before == window else before)
    return tuple(found)


def prepare_swin(tensors: Tensors) -> Prepared:
    """Returns SimMIM's names as the others have them, and the last map's norm as the final one.

    A backbone of a detector has no `norm`, but one for each map that it gives out: `norm0` to
    `norm3`. The last of them is on the place of the final norm.
    """
    tensors = rename(tensors, ((r"\.rpe_mlp\.", ".cpb_mlp."),))
    norms = sorted(name for name in tensors if re.fullmatch(r"norm\d+\.(weight|bias)", name))
    last = f"norm{count(tensors, 'layers.{}.blocks.0.norm1.weight') - 1}"
    if "norm.weight" not in tensors and f"{last}.weight" in tensors:
        log.info("%s, of the last map, is taken as the final norm, which the file lacks", last)
        tensors = rename(tensors, ((rf"^{last}\.", "norm."),))
    left_out = [name for name in norms if name in tensors]
    return {name: t for name, t in tensors.items() if name not in left_out}, left_out


_EXPERTS = re.compile(r"(.*\._moe_layer\.)experts\.batched_(?:fc[12]_w|fc[12]_bias)")
_OUT_BIAS = "experts.batched_fc2_bias"


def prepare_swin_moe(tensors: Tensors) -> Prepared:
    """Returns the tensors with each expert's parts, of the devices that had them, in one.

    Where the MLPs have no second bias, the experts' second biases are untrained zeros: left out.
    """
    tensors, left_out = prepare_swin(tensors)
    plain = "layers.0.blocks.0.mlp.fc2.bias" not in tensors
    kept = {}
    for name, tensor in tensors.items():
        layer = _EXPERTS.fullmatch(name)
        if layer is None:
            kept[name] = tensor
        elif name.endswith(_OUT_BIAS) and plain:
            if np.any(tensor.read()):
                raise UserError(f"{name} is not zero, though the MLPs have no second bias.")
            left_out.append(name)
        else:
            kept[name] = _by_expert(tensor, _count_experts(tensors, layer[1]), name)
    return kept, left_out


def _count_experts(tensors: Tensors, layer: str) -> int:
    """Returns how many experts a layer's router chooses among."""
    if (linear := f"{layer}gates.0.wg.weight") in tensors:
        return tensors[linear].shape[0]
    return tensors[f"{layer}gates.0.sim_matrix"].shape[1]


def _by_expert(tensor: Tensor, experts: int, name: str) -> Tensor:
    """Returns parts (parts, rows, ...) as (experts, parts / experts * rows, ...)."""
    if tensor.shape[0] % experts:
        raise UserError(
            f"{name} has {tensor.shape[0]} of {experts} experts; give the path of the .pth.master, "
            "beside which each device's .pth.rank0, .pth.rank1, ... must be."
        )
    shape = (experts, tensor.size // experts // math.prod(tensor.shape[2:]), *tensor.shape[2:])
    return tensor if shape == tensor.shape else tensor.map(lambda a: a.reshape(shape), shape)


def restore_swin_moe(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns tensors with the number of experts, and the zeros that reading leaves out."""
    restored = dict(arrays)
    for name, array in arrays.items():
        if name.endswith("experts.batched_fc2_w"):
            layer = name.removesuffix("experts.batched_fc2_w")
            restored[layer + "_num_global_experts"] = np.array(len(array))
            restored.setdefault(layer + _OUT_BIAS, np.zeros(array.shape[::2], array.dtype))
    return restored
