"""The parts of a model against closed formulas, and their sums against the whole's counts."""

import jax.numpy as jnp
import pytest
from flax import linen as nn

from vitswin_jax.models.registry import create_model
from vitswin_jax.plan.cost import describe
from vitswin_jax.plan.parts import Part, describe_parts, merge_equal


class Block(nn.Module):
    """Keeps what tanh's derivative needs, and the input of its kernel's product."""

    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(6, name="fc")(x))


class Tiny(nn.Module):
    img_size: int = 8
    in_chans: int = 3
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(6, (4, 4), strides=4, dtype=self.dtype, name="patch_embed")(images)
        x = x.reshape(1, 4, 6) + self.param("pos_embed", nn.initializers.zeros, (1, 4, 6))
        for i in range(2):
            x = Block(name=f"block_{i}")(x)
        return nn.Dense(5, name="head")(x)


def test_every_number_by_hand():
    """The derivatives need the products' inputs and 1 - tanh^2, which needs tanh alone.

    What a product takes in is counted where it is made: the first block's in `rest`, by the
    addition of the position embeddings. Each tanh keeps itself, for the next product, and what jax
    makes of it for its own derivative: 1 - tanh(x).
    """
    assert describe_parts(Tiny()) == (
        Part("images", 0, 0, 8 * 8 * 3 * 4),
        Part("patch_embed", 4 * 4 * 3 * 6 + 6, 4 * (4 * 4 * 3) * 6, 0),
        Part("block_0", 6 * 6 + 6, 4 * 6 * 6, 2 * 4 * 6 * 4),
        Part("block_1", 6 * 6 + 6, 4 * 6 * 6, 2 * 4 * 6 * 4),
        Part("head", 6 * 5 + 5, 4 * 6 * 5, 0),
        Part("rest", 4 * 6, 0, 4 * 6 * 4),
    )


def test_half_the_precision_is_half_the_memory():
    """But for norms and softmax, which stay float32; copies of kernels, cast, do not count."""
    fields = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    full, half = (
        {part.name: part for part in describe_parts(create_model("vit", dtype=dtype, **fields))}
        for dtype in ("float32", "bfloat16")
    )
    ratio = half["block_0"].activation_bytes / full["block_0"].activation_bytes
    assert 0.5 < ratio < 0.8, ratio
    assert half["block_0"].multiply_adds == full["block_0"].multiply_adds


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("vit", {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}),
        ("swin", {"patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4),
                  "window_size": 4}),
        ("swinv2", {"patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4),
                    "window_size": 4, "pretrained_window_sizes": (0, 0)}),
    ],
)  # fmt: skip
def test_the_parts_are_the_whole(family, fields):
    model = create_model(family, img_size=16, num_classes=3, **fields)
    parts = describe_parts(model)
    whole = describe(model)
    assert sum(part.parameters for part in parts) == whole.parameters
    assert sum(part.multiply_adds for part in parts) == whole.multiply_adds


def test_equal_blocks_are_one_row():
    parts = [
        Part("patch_embed", 1, 1, 1),
        Part("stage_0/block_0", 2, 3, 4),
        Part("stage_0/block_1", 2, 3, 4),
        Part("stage_0/block_2", 2, 3, 5),
        Part("stage_1/block_0", 2, 3, 5),
        Part("stage_1/block_1", 2, 3, 5),
    ]
    assert merge_equal(parts) == [
        parts[0],
        Part("stage_0/block_0 ... block_1", 4, 6, 8),
        parts[3],
        Part("stage_1/block_0 ... block_1", 4, 6, 10),
    ]
