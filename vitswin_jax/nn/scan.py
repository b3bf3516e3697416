"""A run of equal blocks, applied in a loop or by scan, and the layout of its parameters.

Loop layout names each block, `block_0`, `block_1`, ...; scan layout has one `blocks` whose leaves
have a leading axis. Files are always in loop layout; `stack_blocks` and `unstack_blocks` convert.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vitswin_jax.core.choices import one_of
from vitswin_jax.core.types import Params

REMAT_POLICIES: dict[bool | str, Callable[..., bool] | None] = {
    True: None,  # keep nothing but the blocks' inputs
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep dense layers' outputs
}


def drop_path_schedule(rate: float, depth: int) -> tuple[float, ...]:
    """Returns each block's stochastic depth rate, rising linearly from 0 to `rate`."""
    return tuple(float(r) for r in np.linspace(0.0, rate, depth))


def rematerialize(apply: Callable, remat: bool | str, *, in_scan: bool) -> Callable:
    """Wraps `apply(module, x, rate)` so that its backward pass recomputes it, as `remat` says.

    Raises UserError for an unknown policy.
    """
    if remat in (False, "none"):
        return apply
    one_of("remat", remat, ("none", *REMAT_POLICIES))
    # A scan's body is compiled separately, so no CSE across blocks can undo the recomputation.
    return nn.remat(apply, policy=REMAT_POLICIES[remat], prevent_cse=not in_scan)


def apply_blocks(
    blocks: Sequence[nn.Module] | nn.Module,
    x: Array,
    rates: Sequence[Any],
    *,
    train: bool,
    remat: bool | str,
    keep_all: bool = False,
    shared: Mapping[str, Any] | None = None,
) -> tuple[Array, Sequence[Array] | Array | None]:
    """Applies blocks one after another; returns the last output and, with `keep_all`, every one.

    `blocks` is a sequence (loop), or one module to be scanned over `rates`, whose rows are what
    each step's module takes as its rate. The outputs of a scan are stacked on a leading axis. Every
    block is given `shared` as keywords.
    """

    def apply(block: nn.Module, x: Array, rate: Any) -> Array:
        return block(x, rate, train=train, **(shared or {}))

    if isinstance(blocks, nn.Module):
        step = rematerialize(apply, remat, in_scan=True)

        def body(block: nn.Module, x: Array, rate: Array) -> tuple[Array, Array | None]:
            x = step(block, x, rate)
            return x, x if keep_all else None

        scan = nn.scan(
            body,
            variable_axes={"params": 0, "losses": 0},
            split_rngs={"params": True, "dropout": True},
            length=len(rates),
        )
        return scan(blocks, x, jnp.asarray(rates, jnp.float32))
    step = rematerialize(apply, remat, in_scan=False)
    outputs = []
    for block, rate in zip(blocks, rates, strict=True):
        x = step(block, x, rate)
        outputs.append(x)
    return x, outputs if keep_all else None


def _depth_of(blocks: Mapping[str, Any], path: str) -> int:
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(blocks)}
    if len(sizes) != 1:
        raise ValueError(f"{path}: the leading axes are {sorted(sizes)}, and should be one depth.")
    return sizes.pop()


def row_paths(path: str, shape: tuple[int, ...]) -> list[str] | None:
    """Returns the paths, in loop layout, of the rows of a stacked leaf; None for any other leaf.

    Paths are names joined by "/", as in `stage_2/pairs/block_0/norm1/scale`.
    """
    match = re.fullmatch(r"((?:encoder/)?(?:stage_\d+/)?)(?:blocks|pairs/block_([01]))/(.*)", path)
    if match is None:
        return None
    stage, half, rest = match.groups()
    step, first = (1, 0) if half is None else (2, int(half))
    return [f"{stage}block_{first + step * i}/{rest}" for i in range(shape[0])]


def unstack_blocks(params: Params) -> Params:
    """Returns parameters in loop layout: scanned `blocks` become `block_0`, `block_1`, ...

    A scanned run of Swin's pairs becomes two blocks a pair. What is in loop layout stays as it is.
    """
    out: dict[str, Any] = {}
    for name, value in params.items():
        if name == "blocks":
            for i in range(_depth_of(value, name)):
                out[f"block_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], value)
        elif name == "pairs":
            for i in range(_depth_of(value, name)):
                for j in (0, 1):
                    out[f"block_{2 * i + j}"] = jax.tree.map(
                        lambda leaf, i=i: leaf[i], value[f"block_{j}"]
                    )
        else:
            out[name] = unstack_blocks(value) if isinstance(value, Mapping) else value
    return out


def stack_blocks(params: Params) -> Params:
    """Returns parameters in scan layout; the inverse of `unstack_blocks`.

    A ViT's blocks become `blocks`; a Swin stage's become `pairs`, and an odd last block stays. A
    stage that norms its map between blocks (`norm_3`) stays as it is.
    """

    def stacked(trees: list[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    out = {
        name: stack_blocks(value) if re.fullmatch(r"encoder|stage_\d+", name) else value
        for name, value in params.items()
        if not name.startswith("block_")
    }
    run = [params[f"block_{i}"] for i in range(sum(name.startswith("block_") for name in params))]
    if not run:
        return out
    if "pos_embed" in params or "patch_embed" in params:
        return {**out, "blocks": stacked(run)}
    norms = [int(name[5:]) for name in params if re.fullmatch(r"norm_\d+", name)]
    if any(i < len(run) - 1 for i in norms):
        return dict(params)
    even = len(run) // 2 * 2
    if even:
        out["pairs"] = {f"block_{j}": stacked(run[j:even:2]) for j in (0, 1)}
    if len(run) > even:
        out[f"block_{even}"] = run[even]
    return out
