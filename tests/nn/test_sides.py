"""Formulas of sides: a constant if they are numbers, computed by the program if symbols."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from vitswin_jax.nn.sides import of_sides

calls = []


@of_sides
def places(xp, size, step, *, first=0):
    """The first side's places, a `step` apart, one row for each of the second side."""
    calls.append(xp)
    return xp.zeros(size[1])[:, None] + first + step * xp.arange(size[0])[None]


def test_numbers_are_computed_once_by_numpy():
    calls.clear()
    one, other = places((3, 2), 5), places((3, 2), 5)
    assert isinstance(one, np.ndarray) and one is other and calls == [np]
    np.testing.assert_array_equal(one, [[0, 5, 10]] * 2)
    np.testing.assert_array_equal(places((3, 2), 5, first=1), one + 1)
    np.testing.assert_array_equal(places((2, 3), 5), [[0, 5]] * 3)


def test_symbols_are_computed_by_the_program():
    calls.clear()
    height, width = export.symbolic_shape("h, w")
    image = jax.ShapeDtypeStruct((height, width), jnp.float32)
    program = export.export(jax.jit(lambda image: places(image.shape, 5) + image.T))(image)
    assert calls == [jnp]
    for size in ((3, 2), (4, 1)):
        got = program.call(jnp.ones(size))
        np.testing.assert_array_equal(got, places(size, 5) + 1)


def test_a_single_symbol_is_enough():
    image = jax.ShapeDtypeStruct((export.symbolic_shape("h")[0], 2), jnp.float32)
    program = export.export(jax.jit(lambda image: places(image.shape, 1) + image.T))(image)
    np.testing.assert_array_equal(program.call(jnp.zeros((3, 2))), [[0, 1, 2]] * 2)
