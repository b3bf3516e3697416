"""Parameters on their way from a file to memory or to a mesh, one tensor at a time.

A host needs room for what is on its way, and not for the model a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from vitswin_jax.core.choices import one_of
from vitswin_jax.nn.placement import param_shardings, spec_of
from vitswin_jax.nn.scan import row_paths, stack_blocks
from vitswin_jax.weights.formats.tensors import Tensor, is_float, shapes_of

PARAM_DTYPES = ("float32", "bfloat16", "float16")
"""What parameters can be kept in."""

_THREADS = 2  # that read and transpose, which leaves the GIL; each holds a tensor

Place = Callable[[str, np.ndarray], Any]
"""From a parameter's name and a fresh array, of which only this function knows, to what is kept."""


def param_dtype_of(dtype: DTypeLike) -> np.dtype:
    """Returns a dtype that parameters can be kept in; raises UserError for another."""
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    one_of("param_dtype", name, PARAM_DTYPES)
    return jnp.dtype(name)


def read_parameters(
    tensors: Mapping[str, Tensor],
    place: Place = lambda _, array: array,
    *,
    dtype: DTypeLike = np.float32,
    shrinks: bool = False,
    threads: int = _THREADS,
) -> dict[str, Any]:
    """Reads flat tensors and returns the tree of what `place` makes of each.

    Arrays are of `dtype` or, with `shrinks`, of the file's where that is smaller.
    """

    def read(name: str) -> Any:
        tensor = tensors[name]
        array = np.empty(tensor.shape, _kind(tensor, jnp.dtype(dtype), shrinks))
        tensor.read_into(array)
        return place(name, array)

    with ThreadPoolExecutor(max_workers=threads) as pool:
        leaves = pool.map(read, tensors)
        return unflatten_dict(dict(zip(tensors, leaves, strict=True)), sep="/")


def read_onto(
    tensors: Mapping[str, Tensor],
    mesh: Mesh | None,
    *,
    dtype: DTypeLike = np.float32,
    scan: bool = False,
) -> dict[str, Any]:
    """Reads flat tensors onto a mesh, None: onto the default device; with `scan` blocks stacked.

    On a mesh each parameter lies as `nn.params` has it. Raises UserError for a mesh that does not
    divide them.
    """
    if mesh is None:
        # jnp.asarray would compile a program for each shape.
        params = read_parameters(
            tensors, lambda _, array: jax.device_put(array, may_alias=False), dtype=dtype
        )
    else:
        divide = _divider(param_shardings(mesh, shapes_of(tensors)), jnp.dtype(dtype))
        params = read_parameters(tensors, divide, dtype=dtype, shrinks=True, threads=1)
    if not scan:
        return params
    flat = flatten_dict(params, sep="/")
    del params  # so that the rows of each stack are let go
    return _stack_in_turn(flat, mesh)


def layout_on(
    tensors: Mapping[str, Tensor], mesh: Mesh, *, dtype: DTypeLike = np.float32
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape, dtype and sharding of each parameter that `read_onto` would give."""
    shapes = shapes_of(tensors)
    return {
        name: jax.ShapeDtypeStruct(shapes[name], jnp.dtype(dtype), sharding=sharding)
        for name, sharding in param_shardings(mesh, shapes).items()
    }


def _stack_in_turn(flat: dict[str, jax.Array], mesh: Mesh | None) -> dict[str, Any]:
    """Returns parameters in scan layout, one stack after the other; takes them out of `flat`."""
    wanted = jax.eval_shape(stack_blocks, unflatten_dict(flat, sep="/"))
    out: dict[str, jax.Array] = {}
    for path, leaf in flatten_dict(wanted, sep="/").items():
        names = row_paths(path, leaf.shape)
        if names is None:
            out[path] = flat.pop(path)
            continue
        where = None if mesh is None else NamedSharding(mesh, spec_of(path))
        rows = [flat.pop(name) for name in names]
        out[path] = jax.block_until_ready(jax.jit(jnp.stack, out_shardings=where)(rows))
    return unflatten_dict(out, sep="/")


def _divider(shardings: Mapping[str, NamedSharding], dtype: np.dtype) -> Place:
    """Returns a function that gives each device its part of an array of the host's."""

    def divide(name: str, array: np.ndarray) -> jax.Array:
        where = shardings[name].addressable_devices_indices_map(array.shape)
        parts = [
            jax.block_until_ready(
                jax.device_put(array[index].astype(dtype, copy=False), device, may_alias=False)
            )
            for device, index in where.items()
        ]
        return jax.make_array_from_single_device_arrays(array.shape, shardings[name], parts)

    return divide


def _kind(tensor: Tensor, dtype: np.dtype, shrinks: bool) -> np.dtype:
    small = shrinks and is_float(tensor) and tensor.dtype.itemsize < dtype.itemsize
    return tensor.dtype if small else dtype
