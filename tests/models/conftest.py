"""Models with random parameters, made and applied fast."""

import functools

import jax
import numpy as np
import pytest


@pytest.fixture
def apply():
    """Applies a model, compiled as one program."""

    def apply(model, params, images, **options):
        return jax.jit(functools.partial(model.apply, **options))({"params": params}, images)

    return apply


@pytest.fixture
def random_params():
    """Gives every parameter random numbers, so that no part hides behind a zero; runs no init."""

    def random_params(model, *inputs, **options):
        rng = np.random.default_rng(0)
        init = functools.partial(model.init, **options)
        shapes = jax.eval_shape(init, jax.random.key(0), *inputs)["params"]

        def fill(path, leaf):
            one = path[-1].key in ("scale", "gamma")
            return jax.numpy.float32(one + 0.3 * rng.standard_normal(leaf.shape))

        return jax.tree_util.tree_map_with_path(fill, shapes)

    return random_params
