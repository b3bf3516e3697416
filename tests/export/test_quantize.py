"""Each output channel is rounded for itself, and no further than half a step."""

import numpy as np
import pytest

from vitswin_jax.export.quantize import quantize_parameters
from vitswin_jax.nn.params import facts


def test_each_output_channel_has_its_scale():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 3, 2, 4)).astype(np.float32) * 10.0 ** np.arange(4, dtype="f")
    weights[:, 1, 1, 2] = 0
    ((codes, scale),) = quantize_parameters({"block_0/attn/qkv/kernel": weights}).values()
    assert (codes.dtype, scale.shape) == (np.int8, (1, 3, 2, 4))
    for output in np.ndindex(3, 2, 4):
        column, place = weights[(slice(None), *output)], (slice(None), *output)
        step = np.abs(column).max() / 127 or 1
        np.testing.assert_array_equal(codes[place], np.rint(column / np.float32(step)))
        assert np.abs(codes[place] * scale[(0, *output)] - column).max() <= step * 0.5001


@pytest.mark.parametrize(
    ("path", "axes"),
    [
        ("patch_embed/proj/kernel", 3),
        ("stage_2/block_5/attn/proj/kernel", 2),
        ("block_3/mlp/fc2/kernel", 1),
        ("stage_0/downsample/reduction/kernel", 1),
        ("attn_pool/kv/kernel", 1),
        ("head_dist/kernel", 1),
        ("stage_0/block_0/attn/cpb_mlp/fc1/kernel", None),
        ("block_0/attn/qkv/bias", None),
        ("pos_embed", None),
        ("backbone/root_conv/kernel", None),
    ],
)
def test_which_axes_a_product_sums_over(path, axes):
    assert facts(path).inputs("int8") == axes


def test_what_is_quantised_sums_to_the_same_product(make):
    """A program's rounded parameters are its codes times its scales, the rest is untouched."""
    program, plain = make("swin", quantize=True), make("swin")
    assert len(program.codes) > 10
    for name, array in plain.params.items():
        if name in program.codes:
            codes, scale = program.codes[name]
            np.testing.assert_array_equal(program.params[name], codes * scale)
        else:
            np.testing.assert_array_equal(program.params[name], array)
