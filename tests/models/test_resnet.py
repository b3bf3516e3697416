"""The hybrids' ResNet: its convolution and padding by hand, and the grid that the ViT cuts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.models.resnet import Numerics, ResNet, StdConv, total_stride

TIMM = Numerics(group_norm_eps=1e-5, weight_var_eps=1e-8, weight_std_eps=0.0, dtype=jnp.float32)


@pytest.mark.parametrize(("var_eps", "std_eps"), [(0.3, 0.0), (0.0, 0.2)])
def test_a_kernel_is_standardised_for_each_output_with_either_epsilon(key, var_eps, std_eps):
    conv = StdConv(5, 1, 1, var_eps, std_eps, jnp.float32)
    x = jax.random.normal(key, (1, 2, 2, 7))
    kernel = 3 + 2 * jax.random.normal(key, (1, 1, 7, 5))
    k = np.asarray(kernel[0, 0], np.float64)
    k = (k - k.mean(0)) / (np.sqrt(k.var(0) + var_eps) + std_eps)
    got = conv.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(got, np.asarray(x, np.float64) @ k, rtol=1e-4, atol=1e-5)


def test_an_even_side_is_padded_at_its_end_first(key):
    """SAME of TensorFlow: 3x3, stride 2, on 4 pixels sees 0 to 2 and 2 to 3, not 0 to 1, 1 to 3."""
    conv = StdConv(1, 3, 2, 0.0, 0.0, jnp.float32)
    params = conv.init(key, jnp.zeros((1, 4, 4, 1)))
    seen = jax.jacobian(lambda x: conv.apply(params, x)[0, :, :, 0])(jnp.ones((1, 4, 4, 1)))
    first = np.asarray(seen[0, 0, 0, :, :, 0]) != 0
    last = np.asarray(seen[1, 1, 0, :, :, 0]) != 0
    assert first.any(1).tolist() == first.any(0).tolist() == [True, True, True, False]
    assert last.any(1).tolist() == last.any(0).tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("layers", "stride", "width"), [((), 4, 64), ((1,), 4, 256), ((1, 2, 1), 16, 1024)]
)
def test_maps_have_the_stride_and_width_of_their_last_stage(layers, stride, width):
    net = ResNet(layers, TIMM)
    images = jax.ShapeDtypeStruct((1, 64, 70, 3), jnp.float32)
    out, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), images)
    assert total_stride(layers) == stride
    assert out.shape == (1, -(-64 // stride), -(-70 // stride), width)


def test_the_numbers_do_not_depend_on_the_kernels_scale(random_params):
    """Weight standardisation: ten times every kernel is the same net."""
    net = ResNet((1, 1), TIMM)
    images = jnp.asarray(np.random.default_rng(1).standard_normal((1, 16, 16, 3), np.float32))
    params = random_params(net, images)
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 10 * leaf if path[-1].key == "kernel" else leaf, params
    )
    apply = jax.jit(lambda params: net.apply({"params": params}, images))
    np.testing.assert_allclose(apply(scaled), apply(params), rtol=1e-3, atol=1e-4)


def test_a_hybrid_cuts_the_map_and_takes_any_size_that_gives_whole_patches(key):
    fields = {"depth": 1, "embed_dim": 8, "num_heads": 2, "num_classes": 3}
    model = create_model("vit", **fields, resnet_layers=(), patch_size=2, img_size=(30, 24))
    assert model.grid == (4, 3)
    images = jax.ShapeDtypeStruct((1, 30, 24, 3), jnp.float32)
    out, variables = jax.eval_shape(model.init_with_output, key, images)
    assert out.shape == (1, 3)
    assert variables["params"]["pos_embed"].shape == (1, 13, 8)
    with pytest.raises(UserError, match="the ResNet's map=5x6 is no multiple of patch_size=2x2"):
        create_model("vit", **fields, resnet_layers=(), patch_size=2, img_size=(20, 24))
