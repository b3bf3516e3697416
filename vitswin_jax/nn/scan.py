"""A run of equal blocks, applied in a loop or by scan, and the layout of its parameters.

Loop layout names each block, `block_0`, `block_1`, ...; scan layout has one `blocks` whose leaves
have a leading axis. A scan over a Swin stage repeats groups: `pairs` of a windowed and a shifted
block, or `groups_of_6` where a norm follows every sixth. Files are always in loop layout;
`stack_blocks` and `unstack_blocks` convert.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
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
    in_scan: bool = False,
    keep_all: bool = False,
    shared: Mapping[str, Any] | None = None,
) -> tuple[Array, Sequence[Array] | Array | None]:
    """Applies blocks one after another; returns the last output and, with `keep_all`, every one.

    `blocks` is a sequence (loop), or one module to be scanned over `rates`, whose rows are what
    each step's module takes as its rate. The outputs of a scan are stacked on a leading axis. Every
    block is given `shared` as keywords. `in_scan`: a loop that is the body of another scan.
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
    step = rematerialize(apply, remat, in_scan=in_scan)
    outputs = []
    for block, rate in zip(blocks, rates, strict=True):
        x = step(block, x, rate)
        outputs.append(x)
    return x, outputs if keep_all else None


class Groups(NamedTuple):
    """The groups of blocks that a scan over a Swin stage repeats."""

    size: int
    """Blocks of each group; even, so that windowed and shifted ones take turns in each alike."""
    number: int
    """Whole groups, all scanned; the blocks after them are apart."""
    normed: bool
    """Whether each group ends with a norm of the map."""

    @property
    def name(self) -> str:
        """Name of their parameters."""
        return "pairs" if self.size == 2 else f"groups_of_{self.size}"


def groups_of(depth: int, norm_after: Sequence[int]) -> Groups:
    """Returns the groups of a stage; `norm_after` numbers the blocks that a norm follows.

    Norms after every odd number of blocks leave no equal groups: then `number` is 0.

    Example: `groups_of(7, ())` is (2, 3, False), and `groups_of(42, range(5, 42, 6))` (6, 7, True).
    """
    size = min((i for i in norm_after if i < depth - 1), default=-1) + 1
    if not size:
        return Groups(2, depth // 2, normed=False)
    whole = sum((i + 1) % size == 0 for i in norm_after)
    return Groups(size, 0 if size % 2 else whole, normed=True)


def row_paths(path: str, shape: tuple[int, ...]) -> list[str] | None:
    """Returns the paths, in loop layout, of the rows of a stacked leaf; None for any other leaf.

    Paths are names joined by "/", as in `stage_2/pairs/block_0/norm1/scale`.
    """
    group = r"(?:pairs|groups_of_(?P<size>\d+))/(?P<kind>block|norm)_(?P<first>\d+)"
    match = re.fullmatch(
        rf"(?P<stage>(?:encoder/)?(?:stage_\d+/)?)(?:blocks|{group})/(?P<rest>.*)", path
    )
    if match is None:
        return None
    stage, rest, first = match["stage"], match["rest"], int(match["first"] or 0)
    step = 1 if match["kind"] is None else int(match["size"] or 2)
    part = f"{stage}{match['kind'] or 'block'}"
    return [f"{part}_{first + step * i}/{rest}" for i in range(shape[0])]


def is_stacked(path: str) -> bool:
    """Returns whether a parameter of this path has a leading axis of blocks or groups."""
    return row_paths(path, (0,)) is not None


def unstack_blocks(params: Params) -> Params:
    """Returns parameters in loop layout: scanned `blocks` become `block_0`, `block_1`, ...

    A Swin stage's groups become the blocks and norms of each. What is in loop layout stays as it
    is. Raises ValueError where the leaves of a run have not one depth.
    """
    out: dict[str, Any] = {}
    depths: dict[str, int] = {}
    for path, leaf in flatten_dict(params, sep="/").items():
        rows = row_paths(path, np.shape(leaf))
        if rows is None:
            out[path] = leaf
            continue
        run = re.sub(r"(blocks|pairs|groups_of_\d+)/.*", r"\1", path)
        if (depth := depths.setdefault(run, len(rows))) != len(rows):
            sizes = sorted((depth, len(rows)))
            raise ValueError(f"{run}: the leading axes are {sizes}, and should be one depth.")
        out |= {row: leaf[i] for i, row in enumerate(rows)}
    return unflatten_dict(out, sep="/")


def stack_blocks(params: Params) -> Params:
    """Returns parameters in scan layout; the inverse of `unstack_blocks`.

    A ViT's blocks become `blocks`; a Swin stage's become its `groups_of`, and the blocks after the
    last whole group stay.
    """

    def stacked(kind: str, first: int, step: int, stop: int) -> Any:
        trees = [out.pop(f"{kind}_{i}") for i in range(first, stop, step)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    out = {
        name: stack_blocks(value) if re.fullmatch(r"encoder|stage_\d+", name) else value
        for name, value in params.items()
    }
    depth = sum(name.startswith("block_") for name in params)
    if not depth:
        return out
    if "pos_embed" in params or "patch_embed" in params:
        out["blocks"] = stacked("block", 0, 1, depth)
        return out
    norms = [int(name[5:]) for name in params if re.fullmatch(r"norm_\d+", name)]
    groups = groups_of(depth, norms)
    size, whole = groups.size, groups.size * groups.number
    if whole:
        group = {f"block_{i}": stacked("block", i, size, whole) for i in range(size)}
        if groups.normed:
            group[f"norm_{size - 1}"] = stacked("norm", size - 1, size, whole)
        out[groups.name] = group
    return out
