"""Geometry of each family against what its forward pass does with tokens, blocks and images."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from kinds import mostly_long

from vitswin_jax.core.types import UserError
from vitswin_jax.models.geometry import geometry_of, window_tokens
from vitswin_jax.models.registry import FAMILIES, create_model
from vitswin_jax.nn.windows import Cut, map_windows
from vitswin_jax.weights.shapes import parameter_shapes

VIT = {"img_size": (12, 16), "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
SWIN = {
    "img_size": (14, 18), "patch_size": 2, "embed_dim": 8, "depths": (2, 3), "num_heads": (2, 2),
    "window_size": 3, "window_clip": "never",
}  # fmt: skip
V2 = SWIN | {"pretrained_window_sizes": (0, 0)}
CASES = {
    "vit": ("vit", VIT),
    "two heads": ("vit", VIT | {"dist_token": True, "pos_embed": "learned2d"}),
    "registers": (
        "vit", VIT | {"reg_tokens": 2, "global_pool": "token_avg", "no_embed_class": True},
    ),
    "mean": ("vit", VIT | {"global_pool": "avg", "fc_norm": True, "pos_embed": "sincos2d"}),
    "map": ("vit", VIT | {"global_pool": "map", "class_token": False, "pos_embed_at": "every"}),
    "relative": ("vit", VIT | {"pos_embed": "relative", "pos_embed_at": "shared"}),
    "hybrid": ("vit", VIT | {"img_size": (32, 48), "patch_size": 1, "resnet_layers": (1, 1)}),
    "swin": ("swin", SWIN | {"ape": True}),
    "swin that rolls first": ("swin", SWIN | {"pad_before_roll": False, "window_size": (2, 3)}),
    "swin of one window": ("swin", SWIN | {"window_clip": "per_axis", "window_size": (16, 3)}),
    "swinv2": ("swinv2", V2),
    "relative by an MLP": ("vit", VIT | {"pos_embed": "relative_mlp", "pos_embed_at": "every"}),
    "query": ("vit", VIT | {"global_pool": "query", "pos_embed": "sincos2d_mae"}),
    "swinv2_cr": ("swinv2_cr", SWIN | {"extra_norm_period": 2}),
    "swin_moe": ("swin_moe", V2 | {"moe_stages": ()}),
    "swin_mlp": ("swin_mlp", SWIN | {"window_clip": "per_axis"}),
}  # fmt: skip

SHORT = ["registers", "relative", "swin", "swinv2"]


class Pass:
    """One forward pass of a model with random parameters, and what its blocks did.

    At each block the second image becomes the first, with the token in the map's middle changed.
    `inputs` are the first image's, (tokens, channels); `changed` has the tokens of the output that
    differ between the two.
    """

    def __init__(self, model, size):
        rng = np.random.default_rng(0)
        shapes = parameter_shapes(model)
        flat = {name: rng.normal(size=s, scale=0.1) for name, s in shapes.items()}
        self.params = jax.tree.map(jnp.float32, unflatten_dict(flat, sep="/"))
        self.images = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
        self.geometry = geometry_of(model, size)
        self.middle = {
            b.name: b.prefix + b.size[0] // 2 * b.size[1] + b.size[1] // 2
            for b in self.geometry.blocks
        }
        seen, patches, features, sown = jax.device_get(jax.jit(self.run, static_argnums=0)(model))
        self.inputs = {name: x.reshape(-1, x.shape[-1]) for name, (x, _) in seen.items()}
        self.maps = {name: x.shape[:-1] for name, (x, _) in seen.items()}
        self.changed = {name: set(np.flatnonzero(out > 1e-6)) for name, (_, out) in seen.items()}
        self.patches, self.features, self.sown = patches, features, sown

    def run(self, model):
        seen = {}

        def tap(call, args, kwargs, context):
            name = "/".join(context.module.path)
            if context.method_name != "__call__" or name not in self.middle:
                return call(*args, **kwargs)
            first = args[0][0]
            other = first.reshape(-1, first.shape[-1]).at[self.middle[name], 0].add(2.0)
            out = call(jnp.stack([first, other.reshape(first.shape)]), *args[1:], **kwargs)
            seen[name] = first, jnp.abs(out[0] - out[1]).reshape(-1, out.shape[-1]).max(-1)
            return out

        variables = {"params": self.params}
        with nn.intercept_methods(tap):
            _, state = model.apply(variables, self.images, mutable=["intermediates"])
        patches = model.apply(variables, self.images, method="embed_patches")
        features = self.features_of(model, variables)
        return seen, patches, features, state.get("intermediates", {})

    def features_of(self, model, variables):
        """Whether the features read each token of the last block's output."""
        last = self.geometry.blocks[-1]

        def read(added):
            def tap(call, args, kwargs, context):
                out = call(*args, **kwargs)
                if context.method_name == "__call__" and "/".join(context.module.path) == last.name:
                    # One channel: a norm would subtract what is added to all.
                    return out.at[..., 0].add(added.reshape(out.shape[:-1]))
                return out

            with nn.intercept_methods(tap):
                return model.apply(variables, self.images[:1], method="features")[0]

        return jnp.abs(jax.jacfwd(read)(jnp.zeros(last.num_tokens))).max(0) > 1e-6


@functools.cache
def passed(case):
    family, fields = CASES[case]
    model = create_model(family, num_classes=0, **fields)
    return model, Pass(model, model.img_size)


def test_every_family_is_a_case():
    assert {family for family, _ in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("case", mostly_long(CASES, SHORT))
def test_blocks_are_those_that_run_on_the_tokens_that_they_have(case):
    model, run = passed(case)
    assert [block.name for block in run.geometry.blocks] == list(run.inputs)
    for block in run.geometry.blocks:
        assert len(run.inputs[block.name]) == block.num_tokens
        assert run.maps[block.name] == block.size or len(run.maps[block.name]) == 1
        want = tuple(-(-n // s) for n, s in zip(model.img_size, block.stride, strict=True))
        assert block.size == want
        assert block.stage == (int(block.name[6]) if "/" in block.name else 0)
    assert run.patches.shape[1:3] == run.geometry.grid


@pytest.mark.parametrize("case", mostly_long(CASES, SHORT))
def test_a_token_changes_those_of_its_window(case):
    """The middle of the map: no shifted window round it reaches over the map's edge."""
    _, run = passed(case)
    for block in run.geometry.blocks:
        (row,) = block.tokens[(block.tokens == run.middle[block.name]).any(1)]
        assert run.changed[block.name] == set(row[row >= 0].tolist()), block.name


@pytest.mark.parametrize("case", mostly_long(CASES, SHORT))
def test_a_pixel_changes_its_own_patch(case):
    model, run = passed(case)
    if run.geometry.filters is None:
        assert model.resnet_layers is not None
        return
    (y, x), (down, across) = (9, 6), run.geometry.blocks[0].stride
    images = jnp.stack([run.images[0], run.images[0].at[y, x].add(1.0)])
    one, other = model.apply({"params": run.params}, images, method="embed_patches")
    assert [(y // down, x // across)] == [tuple(p) for p in np.argwhere((one != other).any(-1))]
    kernel = flatten_dict(run.params, sep="/")[run.geometry.filters]
    assert kernel.shape == (down, across, 3, model.embed_dim)


@pytest.mark.parametrize("case", mostly_long(CASES, SHORT))
def test_positions_are_what_the_first_block_gets_more_than_patches(case):
    _, run = passed(case)
    first = run.geometry.blocks[0]
    added = run.inputs[first.name][first.prefix :].reshape(run.patches[0].shape) - run.patches[0]
    positions = run.geometry.positions
    want = 0 if positions is None else positions(run.params)
    np.testing.assert_allclose(added, np.broadcast_to(want, added.shape), atol=1e-6)


@pytest.mark.parametrize("case", mostly_long(CASES, SHORT))
def test_weights_and_biases_are_sown_as_the_geometry_says(case):
    _, run = passed(case)
    sown = flatten_dict(run.sown, sep="/")
    for block in run.geometry.blocks:
        inside = f"{block.name}/{run.geometry.attention}"
        assert (f"{inside}/attention" in sown) == (run.geometry.attention is not None)
        assert (f"{inside}/position_bias" in sown) == run.geometry.biases
        if run.geometry.attention is not None:
            n = block.tokens.shape[-1]
            assert sown[f"{inside}/attention"][0].shape[-2:] == (n, n)
    pool = run.geometry.pooling.attention
    assert [name for name in sown if name.count("/") == 1] == (
        [f"{pool}/attention"] if pool else []
    )


@pytest.mark.parametrize("case", mostly_long(CASES, SHORT))
def test_features_read_the_tokens_that_are_pooled(case):
    _, run = passed(case)
    last, pooling = run.geometry.blocks[-1], run.geometry.pooling
    read = np.arange(last.num_tokens) < pooling.tokens
    read |= (np.arange(last.num_tokens) >= last.prefix) & (pooling.patches > 0)
    np.testing.assert_array_equal(run.features, read)


@pytest.mark.parametrize(
    "case", mostly_long(["swin that rolls first", "swinv2", "swin_mlp"], ["swinv2"])
)
def test_images_of_another_size_keep_the_windows(case):
    model, _ = passed(case)
    run = Pass(model, (22, 31))
    for block, own in zip(run.geometry.blocks, geometry_of(model).blocks, strict=True):
        assert len(run.inputs[block.name]) == block.num_tokens != own.num_tokens
        assert (block.cut, block.stride) == (own.cut, own.stride)
        (row,) = block.tokens[(block.tokens == run.middle[block.name]).any(1)]
        assert run.changed[block.name] == set(row[row >= 0].tolist()), block.name


@pytest.mark.parametrize("pad_before_roll", [True, False])
@pytest.mark.parametrize("size", [(6, 9), (7, 8), (2, 2)])
@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (1, 2)])
def test_windows_are_those_of_a_loop_over_places(size, shift, pad_before_roll):
    window = (3, 4)
    cut = Cut(window, shift, pad_before_roll)
    padded = [-(-side // step) * step for side, step in zip(size, window, strict=True)]
    whole = padded if pad_before_roll else size
    across = padded[1] // window[1]
    want = np.full((padded[0] // window[0] * across, 12), -1)
    for y, x in np.ndindex(size):
        (row, column) = (y - shift[0]) % whole[0], (x - shift[1]) % whole[1]
        place = row % window[0] * window[1] + column % window[1]
        want[row // window[0] * across + column // window[1], place] = y * size[1] + x
    np.testing.assert_array_equal(window_tokens(size, cut), want)

    @jax.jit
    def cut_up(numbers):
        cuts = []
        map_windows(lambda w, mask: cuts.append(w) or w, numbers, cut)
        return cuts[0]

    numbers = np.arange(1.0, size[0] * size[1] + 1, dtype=np.float32).reshape(1, *size, 1)
    np.testing.assert_array_equal(np.asarray(cut_up(numbers))[0, :, :, 0] - 1, want)


def test_a_model_without_geometry_is_one_line():
    with pytest.raises(UserError, match=r"Dense has no method geometry\(\)"):
        geometry_of(nn.Dense(1))
