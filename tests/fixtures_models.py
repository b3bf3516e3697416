"""Models with random parameters, made and applied fast."""

import functools

import applied
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax.nn.scan import stack_blocks, unstack_blocks


@pytest.fixture
def apply():
    """Applies a model, compiled as one program."""

    def apply(model, params, images, **options):
        return applied.apply(model, {"params": params}, images, **options)

    return apply


@pytest.fixture
def random_params():
    """Gives every parameter random numbers, so that no zero hides a part; runs no init."""

    def random_params(model, *inputs, **options):
        rng = np.random.default_rng(0)
        init = functools.partial(model.init, **options)
        shapes = jax.eval_shape(init, jax.random.key(0), *inputs)["params"]

        def fill(path, leaf):
            one = path[-1].key in ("scale", "gamma")
            return jax.numpy.float32(one + 0.3 * rng.standard_normal(leaf.shape))

        return jax.tree_util.tree_map_with_path(fill, shapes)

    return random_params


@pytest.fixture
def check_scan():
    """Holds a model's scan, with `remat`, against its loop: layout, value and gradients."""

    def check_scan(model, params, images, *, remat):
        scanned = model.clone(scan=True, remat=remat)
        stacked = stack_blocks(params)
        want = jax.eval_shape(scanned.init, jax.random.key(0), images)["params"]
        assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, want)
        jax.tree.map(np.testing.assert_array_equal, unstack_blocks(stacked), params)

        def loss(params, model):
            return (model.apply({"params": params}, images) ** 2).sum()

        run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
        (a, grads), (b, stacked_grads) = run(params, model), run(stacked, scanned)
        np.testing.assert_allclose(a, b, rtol=1e-5)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(
                x, y, atol=2e-3 * float(jnp.abs(x).max()) + 1e-5
            ),
            grads,
            unstack_blocks(stacked_grads),
        )

    return check_scan
