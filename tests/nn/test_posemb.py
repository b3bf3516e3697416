"""Position embeddings: what each kind may know of a place, and where it stands."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from applied import apply
from kinds import mostly_long

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.nn.posemb import create_positions, relative_bias_index, sincos_2d
from vitswin_jax.nn.scan import stack_blocks

TINY = {
    "img_size": (8, 12),
    "patch_size": 4,
    "embed_dim": 8,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 3,
}
KINDS = [
    (kind, place)
    for kind in ("learned", "learned2d", "sincos2d", "relative")
    for place in ("input", "every", "shared")
    if (kind, place) != ("relative", "input")
]


def random_images(batch):
    return np.random.default_rng(1).standard_normal((batch, 8, 12, 3), np.float32)


def positions(kind, *, prefix=0, grid=(3, 4), embed_prefix=True):
    """The positions of a kind, with random parameters."""

    def param(name, init, shape, dtype):
        return jax.random.normal(jax.random.key(len(name)), shape, dtype)

    return np.asarray(
        create_positions(
            param,
            kind=kind,
            grid=grid,
            prefix=prefix,
            hidden_dim=0,  # of MLPs, which these kinds have not
            embed_prefix=embed_prefix,
            embed_dim=8,
            num_heads=2,
        )
    )


def test_two_dimensional_tables_give_half_to_the_row_and_half_to_the_column():
    table = positions("learned2d").reshape(3, 4, 8)
    assert (table[:, :1, :4] == table[..., :4]).all()
    assert (table[:1, :, 4:] == table[..., 4:]).all()
    assert len(np.unique(table.reshape(12, 8), axis=0)) == 12


@pytest.mark.parametrize("kind", ["learned", "learned2d", "sincos2d"])
def test_prefix_tokens_come_first_and_may_have_no_position(kind):
    with_prefix, patches = positions(kind, prefix=2, embed_prefix=False), positions(kind)
    assert with_prefix.shape == (1, 14, 8)
    assert (with_prefix[:, :2] == 0).all()
    np.testing.assert_array_equal(with_prefix[:, 2:], patches)
    assert positions("learned", prefix=2).all()


def test_sincos_is_big_visions(key):
    """Column 3 of row 1, by hand: sin and cos of x, then of y, at frequencies 1 and 1e-4."""
    table = sincos_2d(2, 4, embed_dim=8)[0].reshape(2, 4, 8)
    want = [np.sin(3), np.sin(3e-4), np.cos(3), np.cos(3e-4)]
    want += [np.sin(1), np.sin(1e-4), np.cos(1), np.cos(1e-4)]
    np.testing.assert_allclose(table[1, 3], want, rtol=1e-6)


def test_relative_biases_know_the_offset_and_nothing_else():
    """Two pairs have the same row exactly if their offsets are equal; prefix rows are their own."""
    index = relative_bias_index((3, 4), 2)
    places = np.stack(np.mgrid[:3, :4], -1).reshape(-1, 2)
    offsets = (places[:, None] - places[None]).reshape(-1, 2)
    same_offset = (offsets[:, None] == offsets[None]).all(-1)
    rows = index[2:, 2:].ravel()
    np.testing.assert_array_equal(rows[:, None] == rows[None], same_offset)
    others = [index[:2, 2:], index[2:, :2], index[:2, :2]]
    assert [np.unique(part).size for part in others] == [1, 1, 1]
    assert len({int(part[0, 0]) for part in others} | set(rows)) == rows.max() + 1 + 3


@pytest.mark.parametrize(("kind", "place"), mostly_long(KINDS, KINDS[1::4]))
def test_scan_equals_loop_wherever_positions_stand(random_params, kind, place):
    create = functools.partial(
        create_model, "vit", **TINY, reg_tokens=1, pos_embed=kind, pos_embed_at=place
    )
    model, scanned = create(), create(scan=True)
    images = random_images(2)
    params = random_params(model, images)
    want = apply(model, {"params": params}, images)
    got = apply(scanned, {"params": stack_blocks(params)}, images)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_every_block_has_a_table_of_its_own_and_shared_blocks_have_one(key):
    count = {}
    for place in ("input", "every", "shared"):
        model = create_model("vit", **TINY, pos_embed_at=place)
        shapes = jax.eval_shape(model.init, key, jnp.zeros((1, 8, 12, 3)))["params"]
        count[place] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count["shared"] == count["input"] == count["every"] - 2 * 7 * 8


@pytest.mark.parametrize(
    ("kind", "place"), mostly_long([("none", "input"), *KINDS], [("none", "input"), *KINDS[::4]])
)
def test_without_positions_patches_are_a_set_and_with_them_they_are_not(random_params, kind, place):
    """The class token of a model without positions cannot tell that two patches are exchanged."""
    fields = TINY | {"depth": 2, "num_classes": 0, "pos_embed": kind, "pos_embed_at": place}
    model = create_model("vit", **fields)
    images = random_images(1)
    exchanged = images.copy()
    exchanged[:, :4, :4], exchanged[:, 4:, 8:] = images[:, 4:, 8:], images[:, :4, :4]
    both = np.concatenate([images, exchanged])
    params = random_params(model, both)
    out = np.asarray(jax.jit(model.apply)({"params": params}, both))
    assert np.allclose(out[0], out[1], atol=1e-5) == (kind == "none")


def test_relative_positions_have_no_place_at_the_input():
    with pytest.raises(UserError, match="pos_embed='relative' needs pos_embed_at='every'"):
        create_model("vit", **TINY, pos_embed="relative")
    with pytest.raises(UserError, match="pos_embed_at='all' must be one of input, every, shared"):
        create_model("vit", **TINY, pos_embed_at="all")
