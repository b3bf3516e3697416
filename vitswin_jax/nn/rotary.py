"""Rotary positions of patches: channels of queries and keys turn by angles that their place sets.

RoFormer (arXiv:2104.09864, eq. 15) on two axes. A pair of channels of a patch at (y, x) turns by
y·f or by x·f ("axial"), or by y·f + x·g with frequencies that each head of each block learns
("mixed", arXiv:2403.13298, eq. 14). So the product of a query and a key depends on their offset.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitswin_jax.core.choices import Faults, wrong_choice
from vitswin_jax.nn.sides import Size, of_sides

ROPE_TYPES = ("none", "axial", "centred", "mixed")
INDEXINGS = ("ij", "xy")
PERIOD_DTYPES = ("float32", "bfloat16")


@flax.struct.dataclass
class Rotation:
    """The rotation of each token of a sequence: cosines and sines that heads share or have apart.

    A token whose cosines are 1 and whose sines are 0 keeps its channels: the prefix.
    """

    cos: Float[Array, "*batch n d"]
    sin: Float[Array, "*batch n d"]
    half: bool = flax.struct.field(pytree_node=False)
    """Whether channel i is paired with i + d/2; otherwise 2i is paired with 2i + 1."""

    def __call__(self, x: Float[Array, "*batch n d"]) -> Float[Array, "*batch n d"]:
        """Returns queries or keys, turned; computed in float32."""
        if self.half:
            first, second = jnp.split(x, 2, axis=-1)
            turned = jnp.concatenate([-second, first], axis=-1)
        else:
            # Indexing with a step is a gather in JAX.
            even, odd = (jax.lax.slice_in_dim(x, i, None, 2, axis=-1) for i in (0, 1))
            turned = jnp.stack([-odd, even], axis=-1).reshape(x.shape)
        cos, sin = (jnp.expand_dims(t, range(x.ndim - t.ndim)) for t in (self.cos, self.sin))
        return (x * cos + turned * sin).astype(x.dtype)

    def map(self, function: Callable[[Array], Array]) -> Rotation:
        """Returns the rotation of other tokens, such as those of a padded sequence."""
        return self.replace(cos=function(self.cos), sin=function(self.sin))  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class Rotary:
    """The settings of the angles; each field is the model's field of that name after `rope_`.

    `type` "axial" takes the index of a row and a column as coordinates, plus `grid_offset`, as if
    the grid were `ref_grid` (EVA-02, Perception Encoder); "centred" takes centres of patches in
    [-1, 1], and whole turns a period (DINOv3); "mixed" learns frequencies. The frequencies of the
    first two are temperature^(-k / (d/4)), k < d/4. `grid_indexing` "ij" gives the first channels
    to the row, "xy" to the column. `rotate_half` pairs channels i and i + d/2, not neighbours.
    `dtype` is the one that the periods of "centred" are rounded to.
    """

    type: str = "none"
    temperature: float = 10_000.0
    grid_offset: float = 0.0
    grid_indexing: str = "ij"
    rotate_half: bool = False
    ref_grid: Size | None = None
    dtype: str = "float32"

    @classmethod
    def of(cls, model: nn.Module) -> Rotary:
        """Returns the options that a model's fields give."""
        return cls(**{f.name: getattr(model, f"rope_{f.name}") for f in dataclasses.fields(cls)})

    def check(self, head_dim: int) -> Faults:
        """Returns the faults of the options for heads of that many channels."""
        faults = Faults()
        faults += wrong_choice("rope_type", self.type, ROPE_TYPES)
        faults += wrong_choice("rope_grid_indexing", self.grid_indexing, INDEXINGS)
        faults += wrong_choice("rope_dtype", self.dtype, PERIOD_DTYPES)
        if self.type != "none" and head_dim % 4:
            faults.append(f"rope_type={self.type!r} needs heads of 4, 8, ... channels: {head_dim}")
        plain = Rotary(type=self.type, temperature=self.temperature)
        uses = {"axial": ("ref_grid",), "centred": ("dtype",)}
        for name in ("ref_grid", "dtype"):
            value = getattr(self, name)
            if value != getattr(plain, name) and name not in uses.get(self.type, ()):
                faults.append(f"rope_{name}={value!r} does not fit rope_type={self.type!r}")
        return faults

    def rotation(self, grid: Size, prefix: int, head_dim: int) -> Rotation | None:
        """Returns the rotation that all blocks share; None where each block has its own, or none.

        The `prefix` tokens before the patches are not turned.
        """
        if self.type in ("none", "mixed"):
            return None
        return self._with_prefix(jnp.asarray(_angles(grid, self, head_dim)), prefix)

    def own_rotation(
        self, param: Callable[..., Array], grid: Size, prefix: int, heads: int, head_dim: int
    ) -> Rotation:
        """Returns a block's rotation by the frequencies that it learns.

        `param` is the block's; the parameter `rope_freqs` is (2, heads, head_dim / 2), the first
        half for the coordinate that `grid_indexing` puts first.
        """
        init = functools.partial(_random_frequencies, temperature=self.temperature)
        freqs = param("rope_freqs", init, (2, heads, head_dim // 2), jnp.float32)
        first, second = (jnp.asarray(axis) for axis in _coordinates(grid, self))
        freqs = jnp.asarray(freqs)[:, :, None]  # by axis, head and token
        angles = first[None, :, None] * freqs[0] + second[None, :, None] * freqs[1]
        return self._with_prefix(angles, prefix)

    def periods(self, head_dim: int) -> Float[np.ndarray, " bands"]:
        """Returns the inverse of the frequencies of each axis, float32."""
        bands = head_dim // 4
        exponents = np.arange(bands, dtype=np.float32) / np.float32(bands)
        periods = np.float32(self.temperature) ** exponents
        return periods.astype(jnp.dtype(self.dtype)).astype(np.float32)

    def _with_prefix(self, angles: Float[Array, "*heads n half"], prefix: int) -> Rotation:
        """Returns the rotation by angles of patches, of which each is for a pair of channels."""
        room = (*[(0, 0)] * (angles.ndim - 2), (prefix, 0), (0, 0))
        angles = jnp.pad(angles, room)  # of a prefix 0: cosine 1, sine 0

        def layout(x: Array) -> Array:
            return jnp.concatenate([x, x], -1) if self.rotate_half else jnp.repeat(x, 2, -1)

        return Rotation(layout(jnp.cos(angles)), layout(jnp.sin(angles)), self.rotate_half)


@of_sides
def _coordinates(
    xp: Any, grid: Size, rotary: Rotary
) -> tuple[Float[np.ndarray | Array, " n"], Float[np.ndarray | Array, " n"]]:
    """Returns two coordinates of each patch, row-major, in the order of `grid_indexing`."""
    axes, offset = [], np.float32(rotary.grid_offset)
    for side, reference in zip(grid, rotary.ref_grid or grid, strict=True):
        place = xp.arange(side, dtype=np.float32)
        if rotary.type == "centred":
            place = (place + np.float32(0.5) + offset) / xp.float32(side)
            axes.append(np.float32(2) * place - np.float32(1))
            continue
        place = place + offset
        if rotary.ref_grid is not None:
            place = place / xp.float32(side) * np.float32(reference)
        axes.append(place)
    rows, columns = (x.reshape(-1) for x in xp.meshgrid(*axes, indexing="ij"))
    return (rows, columns) if rotary.grid_indexing == "ij" else (columns, rows)


@of_sides
def _angles(
    xp: Any, grid: Size, rotary: Rotary, head_dim: int
) -> Float[np.ndarray | Array, "n half"]:
    """Returns the angle of each pair of channels of each patch, as float32 as the originals do."""
    periods = rotary.periods(head_dim)
    turns = [axis[:, None] / periods[None] for axis in _coordinates(grid, rotary)]
    if rotary.type == "centred":
        turns = [np.float32(2 * np.pi) * axis for axis in turns]
    return xp.concatenate(turns, axis=1).astype(np.float32)


def _random_frequencies(
    key: Array, shape: tuple[int, ...], dtype: Any, *, temperature: float
) -> Float[Array, "2 heads half"]:
    """Draws frequencies of all directions: RoPE-ViT's (its init_random_2d_freqs)."""
    _, heads, half = shape
    sizes = jnp.tile(temperature ** -(jnp.arange(half // 2) / (half // 2)), 2)
    angle = jax.random.uniform(key, (heads, 1), maxval=2 * jnp.pi)
    angles = angle + jnp.pi / 2 * (jnp.arange(half) // (half // 2))[None]  # and at right angles
    directions = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
    return (sizes[None, None] * directions).astype(dtype)
