"""Rotary positions: turns by complex numbers, and what a product may know of two places."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.nn.rotary import Rotary

GRID, DIM = (3, 4), 8


def rotation(rotary, *, prefix=0, grid=GRID, heads=1):
    if rotary.type != "mixed":
        return rotary.rotation(grid, prefix, DIM)

    def param(name, init, shape, dtype):
        assert name == "rope_freqs"
        return init(jax.random.key(0), shape, dtype)

    return rotary.own_rotation(param, grid, prefix, heads, DIM)


def complex_pairs(x, *, half):
    """The channels of a token as complex numbers."""
    x = np.asarray(x, np.float64)
    return x[..., : DIM // 2] + 1j * x[..., DIM // 2 :] if half else x[..., ::2] + 1j * x[..., 1::2]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("indexing", ["ij", "xy"])
def test_a_pair_of_channels_turns_by_the_angle_of_its_place(half, indexing):
    """EVA-02's positions: places on a reference grid, from an offset on, over the periods."""
    rotary = Rotary("axial", 100.0, 1.0, indexing, half, ref_grid=(6, 4))
    x = np.random.default_rng(0).standard_normal((12, DIM)).astype(np.float32)
    turned = complex_pairs(rotation(rotary)(jnp.asarray(x)), half=half)
    for token, (row, column) in enumerate(itertools.product(range(3), range(4))):
        places = [(row + 1) / 3 * 6, (column + 1) / 4 * 4]
        places = places if indexing == "ij" else places[::-1]
        angles = np.array([place / period for place in places for period in (1.0, 10.0)])
        want = complex_pairs(x[token], half=half) * np.exp(1j * angles)
        np.testing.assert_allclose(turned[token], want, atol=1e-5)


@pytest.mark.parametrize(("dtype", "period"), [("float32", 50**0.5), ("bfloat16", 7.0625)])
def test_dinov3s_places_are_centres_of_patches_between_minus_one_and_one(dtype, period):
    """A whole turn a period; bfloat16 has 7.0625 next to the square root of 50."""
    rotary = Rotary("centred", 50.0, rotate_half=True, dtype=dtype)
    ones = jnp.ones((12, DIM))
    turned = complex_pairs(rotation(rotary)(ones), half=True)
    for token, (row, column) in enumerate(itertools.product(range(3), range(4))):
        places = [2 * (row + 0.5) / 3 - 1, 2 * (column + 0.5) / 4 - 1]
        angles = np.array([2 * np.pi * place / t for place in places for t in (1.0, period)])
        np.testing.assert_allclose(turned[token], (1 + 1j) * np.exp(1j * angles), atol=1e-5)


@pytest.mark.parametrize("kind", ["axial", "mixed"])
def test_a_product_depends_on_the_offset_of_two_patches(kind):
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(np.tile(rng.standard_normal(DIM), (2, 12, 1)), jnp.float32) for _ in "qk")
    turn = rotation(Rotary(kind, 10.0), heads=2)
    logits = np.einsum("hnd,hmd->hnm", turn(q), turn(k)).reshape(2, *GRID, *GRID)
    for head in range(2):
        assert np.ptp(logits[head]) > 0.1
        by_offset = {}
        for place in itertools.product(*map(range, (*GRID, *GRID))):
            offset = (place[2] - place[0], place[3] - place[1])
            by_offset.setdefault(offset, []).append(logits[head][place])
        assert max(np.ptp(values) for values in by_offset.values()) < 1e-5
    if kind == "mixed":  # each head has frequencies of its own
        assert np.abs(logits[0] - logits[1]).max() > 0.1


def test_the_prefix_is_not_turned():
    x = jax.random.normal(jax.random.key(2), (2, 15, DIM))
    turn = rotation(Rotary("mixed"), prefix=3, heads=2)
    np.testing.assert_array_equal(turn(x)[:, :3], x[:, :3])
    patches = rotation(Rotary("mixed"), heads=2)(x[:, 3:])
    np.testing.assert_array_equal(turn(x)[:, 3:], patches)


def test_frequencies_of_two_pairs_are_at_right_angles():
    """RoPE-ViT's start: the second half of a head's pairs are the first's, turned by 90°."""

    def param(name, init, shape, dtype):
        param.drawn = np.asarray(init(jax.random.key(0), shape, dtype))
        return param.drawn

    Rotary("mixed", 100.0).own_rotation(param, GRID, 0, 3, DIM)
    first, second = param.drawn[..., :2], param.drawn[..., 2:]
    np.testing.assert_allclose((first * second).sum(0), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(first, axis=0), [[1, 0.1]] * 3, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rope_type": "axiel"}, "did you mean 'axial'"),
        ({"rope_type": "axial", "embed_dim": 18, "num_heads": 3}, "heads of 4, 8, ... channels"),
        ({"rope_type": "mixed", "rope_ref_grid": (4, 4)}, "does not fit rope_type='mixed'"),
        ({"rope_type": "axial", "rope_dtype": "bfloat16"}, "does not fit rope_type='axial'"),
    ],
)
def test_what_does_not_fit_is_one_line(fields, says):
    with pytest.raises(UserError, match=says):
        create_model("vit", **{"embed_dim": 16, "num_heads": 2, **fields})
