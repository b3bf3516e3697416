"""Random parameters without a compilation: what most of a small model's test would wait for."""

import jax
import numpy as np
import pytest


@pytest.fixture
def random_params():
    """A function: the parameters of a module that takes `args`, drawn anew, none left at zero."""

    def create(module, *args, scale=0.3, **kwargs):
        def init(key, *args):
            return module.init(key, *args, **kwargs)

        shapes = jax.eval_shape(init, jax.random.key(0), *args)["params"]
        rng = np.random.default_rng(0)

        def draw(path, leaf):
            values = scale * rng.standard_normal(leaf.shape, np.float32)
            return values + 1 if path[-1].key in ("scale", "gamma") else values

        return jax.tree_util.tree_map_with_path(draw, shapes)

    return create
