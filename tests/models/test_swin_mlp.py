"""Swin-MLP: where a token's influence goes, and the mixing by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.models.swin_mlp import SpatialMlp
from vitswin_jax.nn.scan import stack_blocks

TINY = {
    "img_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (1, 1),
    "num_heads": (2, 4),
    "window_size": 4,
    "num_classes": 5,
}


def random_images(*shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def test_each_head_mixes_places_by_its_own_matrix(random_params):
    layer = SpatialMlp(2, jax.nn.initializers.zeros, jnp.float32)
    x = jnp.asarray(random_images(1, 3, 4, 6))
    params = random_params(layer, x)
    kernel, bias = np.asarray(params["kernel"]), np.asarray(params["bias"])
    want = np.empty(x.shape, np.float32)
    for channel in range(6):
        head = channel // 3
        want[..., channel] = np.asarray(x)[..., channel] @ kernel[head] + bias[head]
    got = jax.jit(layer.apply)({"params": params}, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(20, 20), (18, 22)])
def test_shifted_windows_begin_half_a_window_later(random_params, size):
    """On maps of 10 x 10, and of 9 x 11 that the windows of 5 x 5 do not divide."""
    images = random_images(1, *size, 3)
    h, w = size[0] // 2, size[1] // 2
    for depths, shift in (((1, 1), 0), ((2, 1), 2)):
        model = create_model("swin_mlp", **TINY | {"depths": depths, "window_size": 5})
        params = random_params(model, images)
        if shift:  # the shifted block alone: the windowed one's branches give nothing
            block = params["stage_0"]["block_0"]
            for part in ("spatial_mlp", "mlp"):
                block[part] = jax.tree.map(np.zeros_like, block[part])
        run = functools.partial(model.apply, {"params": params}, method="feature_maps")
        first = jax.jit(lambda x, run=run: run(x)[0])
        changed = images.copy()
        changed[:, 6, 6] += 1  # token (3, 3)
        moved = np.abs(first(images) - first(changed)).max((0, -1)) > 1e-6
        low, high = shift, shift + 5
        want = np.zeros((h, w), bool)
        want[low:high, low:high] = True
        np.testing.assert_array_equal(moved, want)


def test_scan_equals_loop(random_params, apply):
    fields = TINY | {"depths": (3, 2)}
    images = random_images(2, 16, 16, 3)
    model = create_model("swin_mlp", **fields)
    scanned = create_model("swin_mlp", **fields, scan=True)
    params = random_params(model, images)
    want, got = apply(model, params, images), apply(scanned, stack_blocks(params), images)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_attentions_fields_are_refused():
    with pytest.raises(UserError, match="Swin-MLP has no attention; qkv_bias"):
        create_model("swin_mlp", **TINY, qkv_bias=False)
