"""Windows against what can be said of them without the code under test."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import mostly_long

from vitswin_jax.core.types import UserError
from vitswin_jax.models.swin_block import WindowAttention
from vitswin_jax.nn import execution, windows


@pytest.mark.parametrize("window", [(4, 4), (2, 3), (1, 5)])
def test_partition_holds_each_neighbourhood_and_reverse_undoes_it(window):
    height, width = 3 * window[0], 2 * window[1]
    x = jnp.arange(2 * height * width * 3.0).reshape(2, height, width, 3)
    cut = np.asarray(windows.window_partition(x, window))
    for i, j in itertools.product(range(3), range(2)):
        rows = slice(i * window[0], (i + 1) * window[0])
        columns = slice(j * window[1], (j + 1) * window[1])
        want = np.asarray(x)[:, rows, columns].reshape(2, -1, 3)
        np.testing.assert_array_equal(cut[:, 2 * i + j], want)
    back = windows.window_reverse(jnp.asarray(cut), window, height=height, width=width)
    np.testing.assert_array_equal(back, x)


def test_partition_refuses_a_map_that_is_not_whole_windows():
    with pytest.raises(ValueError, match=r"window_size=\(4, 4\) must divide 8x6"):
        windows.window_partition(jnp.zeros((1, 8, 6, 1)), (4, 4))


@pytest.mark.parametrize("window", [(3, 3), (2, 4)])
def test_relative_index_is_one_row_for_each_displacement(window):
    """Pairs share a row exactly if key lies at the same offset from query; rows are row-major."""
    index = windows.relative_position_index(window)
    places = list(itertools.product(range(window[0]), range(window[1])))
    rows = {}
    for (q, query), (k, place) in itertools.product(enumerate(places), enumerate(places)):
        displacement = (query[0] - place[0], query[1] - place[1])
        assert rows.setdefault(displacement, index[q, k]) == index[q, k]
    assert len(set(rows.values())) == len(rows) == (2 * window[0] - 1) * (2 * window[1] - 1)
    assert [rows[d] for d in sorted(rows)] == list(range(len(rows)))


SHIFTS = [((8, 8), 4, (2, 2)), ((6, 9), 3, (1, 1)), ((8, 4), 4, (2, 0)), ((4, 8), 4, (0, 1))]


@pytest.mark.parametrize(("size", "window", "shift"), mostly_long(SHIFTS, SHIFTS[1:2]))
def test_shifted_windows_never_join_opposite_edges(size, window, shift):
    """A token hears those tokens of its window that were near it before the roll."""
    origin = np.stack(np.mgrid[: size[0], : size[1]], -1)[None].astype(np.float32)
    rolled = jnp.asarray(np.roll(origin, (-shift[0], -shift[1]), axis=(1, 2)))
    place = np.asarray(windows.window_partition(rolled, (window, window))[0])
    near = (np.abs(place[:, :, None] - place[:, None]) < window).all(-1)  # w n n

    mask = windows.shifted_window_mask(size, window_size=(window, window), shift=shift)
    attention = WindowAttention(num_heads=2, window_size=(window, window))
    x = jax.random.normal(jax.random.key(0), (1, *mask.shape[:2], 6))
    params = jax.jit(functools.partial(attention.init, train=False))(jax.random.key(1), x)
    jacobian = jax.jit(jax.jacobian(lambda x: attention.apply(params, x, mask, train=False)))(x)
    influence = np.einsum("bwqcbwkd->wqk", np.abs(jacobian))
    # A masked pair's weight is exp(-100) of the others', as in the original; that is 4e-44.
    np.testing.assert_array_equal(influence > 1e-30, near)


def test_two_windows_side_by_side_are_blind_to_each_other():
    """A map's tokens by number: within a window their bias, between windows no weight."""
    window, numbers = (2, 3), np.arange(2 * 6).reshape(1, 2, 6, 1)
    biases = np.arange(2 * 6 * 6.0).reshape(2, 6, 6)
    got = np.asarray(execution.biases_in_pairs(jnp.asarray(biases), window))
    where = np.asarray(windows.window_partition(jnp.asarray(1.0 * numbers), window))[0, :, :, 0]
    want = np.full((2, 12, 12), -np.inf)
    for tokens in where.astype(int):
        want[:, tokens[:, None], tokens] = biases
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("width", "window", "pairs"),
    [
        (28, (7, 7), True),
        (22, (7, 7), True),  # padded to 28
        (21, (7, 7), False),
        (7, (7, 7), False),
        (16, (8, 8), True),
        (24, (12, 12), False),
    ],
)
def test_windows_pair_off_where_they_are_even_and_a_pair_is_128_tokens_at_most(
    width, window, pairs
):
    assert execution.come_in_pairs(width, window) == pairs


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -2), (2, 3), (-3, 5)])
def test_roll_is_jnp_roll(shift):
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    np.testing.assert_array_equal(windows.roll(x, shift), jnp.roll(x, shift, axis=(1, 2)))


@pytest.mark.parametrize(
    ("clip", "resolution", "window", "want"),
    [
        ("per_axis", (14, 14), (7, 7), ((7, 7), (3, 3))),
        ("per_axis", (7, 7), (7, 7), ((7, 7), (0, 0))),
        ("per_axis", (4, 20), (7, 7), ((4, 7), (0, 3))),
        ("min", (14, 14), (7, 7), ((7, 7), (3, 3))),
        ("min", (7, 7), (7, 7), ((7, 7), (0, 0))),
        ("min", (4, 20), (7, 7), ((4, 4), (0, 0))),
        ("never", (4, 20), (7, 7), ((7, 7), (3, 3))),
    ],
)
def test_windows_fit_small_maps_as_each_original_has_it(clip, resolution, window, want):
    assert windows.fit_window(resolution, window, window_clip=clip) == want


def test_an_unknown_clip_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="window_clip='max' must be one of per_axis"):
        windows.fit_window((7, 7), (7, 7), window_clip="max")


def naive_map_windows(attend, x, *, window, shift, pad_before_roll):
    """Walks over windows one by one, with plain numpy rolls and pads."""
    (height, width), c = x.shape[:2], x.shape[2]
    pads = [(0, -height % window), (0, -width % window), (0, 0)]
    if pad_before_roll:
        x = np.roll(np.pad(x, pads), (-shift, -shift), (0, 1))
    else:
        x = np.pad(np.roll(x, (-shift, -shift), (0, 1)), pads)
    out = np.zeros_like(x)
    for i in range(0, x.shape[0], window):
        for j in range(0, x.shape[1], window):
            tile = x[i : i + window, j : j + window].reshape(-1, c)
            out[i : i + window, j : j + window] = attend(tile).reshape(window, window, c)
    if pad_before_roll:
        return np.roll(out, (shift, shift), (0, 1))[:height, :width]
    return np.roll(out[:height, :width], (shift, shift), (0, 1))


@pytest.mark.parametrize("pad_before_roll", [True, False])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [(6, 6), (5, 7), (2, 4)])
def test_maps_of_any_size_are_padded_shifted_and_cut(size, shift, pad_before_roll):
    """With a sum over the window in attention's place, each way round equals the naive walk."""
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    cut = windows.Cut((3, 3), (shift, shift), pad_before_roll)

    @jax.jit
    def summed(x):
        return windows.map_windows(
            lambda tiles, _: jnp.broadcast_to(tiles.sum(2, keepdims=True), tiles.shape), x, cut
        )

    got = summed(x)
    for image, result in zip(np.asarray(x), np.asarray(got), strict=True):
        want = naive_map_windows(
            lambda tile: np.broadcast_to(tile.sum(0), tile.shape),
            image,
            window=3,
            shift=shift,
            pad_before_roll=pad_before_roll,
        )
        np.testing.assert_allclose(result, want, atol=1e-5)
