"""Counts of multiply-adds against closed formulas."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.experimental import pallas as pl

from vitswin_jax.models.registry import create_model
from vitswin_jax.plan.cost import describe, multiply_adds


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def dot(a, b):
    return a @ b


ONE = 3 * 4 * 5  # of f32(3, 4) @ f32(4, 5)
ARGS = (f32(3, 4), f32(4, 5))


def test_matrix_product():
    assert multiply_adds(dot, *ARGS) == ONE


def test_einsum_with_batch_and_several_contracted_axes():
    count = multiply_adds(
        lambda q, k: jnp.einsum("bqhde,bkhde->bhqk", q, k), f32(2, 7, 3, 5, 2), f32(2, 11, 3, 5, 2)
    )
    assert count == 2 * 3 * 7 * 11 * 5 * 2


def test_elementwise_work_is_free():
    assert multiply_adds(lambda x: jax.nn.softmax(jnp.sin(x) * x), f32(3, 4)) == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(groups):
    conv = nn.Conv(8, (3, 5), strides=2, padding="SAME", feature_group_count=groups)
    variables = jax.eval_shape(conv.init, jax.random.key(0), f32(2, 9, 9, 4))
    assert multiply_adds(conv.apply, variables, f32(2, 9, 9, 4)) == (
        2 * 5 * 5 * 8 * (3 * 5 * 4 // groups)
    )


def test_gradients_of_a_patch_embedding_cost_what_it_costs():
    def loss(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).sum()

    args = (f32(2, 16, 16, 3), f32(4, 4, 3, 8))
    forward = 2 * 4 * 4 * 8 * (4 * 4 * 3)
    assert multiply_adds(loss, *args) == forward
    assert multiply_adds(jax.grad(loss, argnums=1), *args) == 2 * forward
    assert multiply_adds(jax.grad(loss, argnums=(0, 1)), *args) == 3 * forward


def with_its_own_gradient(fn):
    wrapped = jax.custom_vjp(fn)
    wrapped.defvjp(lambda *args: (fn(*args), None), lambda residual, out: (None, None))
    return wrapped


@pytest.mark.parametrize(
    "wrap",
    [
        jax.jit,
        jax.checkpoint,
        lambda fn: jax.jit(jax.jit(fn)),
        with_its_own_gradient,
        lambda fn: jax.vmap(fn, in_axes=(None, 1), out_axes=1),
    ],
)
def test_wrappers_change_nothing(wrap):
    assert multiply_adds(wrap(dot), *ARGS) == ONE


def test_scan_counts_every_turn():
    def run(x, w):
        return jax.lax.scan(lambda x, _: (jax.jit(dot)(x, w), None), x, length=7)[0]

    assert multiply_adds(run, f32(3, 4), f32(4, 4)) == 7 * 3 * 4 * 4


def test_a_kernel_counts_once_per_program():
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    run = pl.pallas_call(kernel, grid=(2, 3), out_shape=f32(3, 4), interpret=True)
    assert multiply_adds(run, f32(3, 4), f32(4, 4)) == 2 * 3 * 3 * 4 * 4


def test_branches_count_as_the_dearest():
    def run(flag, x, w):
        return jax.lax.cond(flag, lambda: x @ w @ w, lambda: x @ w)

    args = (jax.ShapeDtypeStruct((), bool), f32(3, 4), f32(4, 4))
    assert multiply_adds(run, *args) == 2 * 3 * 4 * 4


def test_unknown_number_of_turns_raises():
    def run(x, w, turns):
        return jax.lax.fori_loop(0, turns, lambda _, x: x @ w, x)

    with pytest.raises(ValueError, match="inside a while"):
        multiply_adds(run, f32(3, 4), f32(4, 4), jax.ShapeDtypeStruct((), jnp.int32))


def test_a_loop_without_products_is_free():
    def run(x, turns):
        return jax.lax.fori_loop(0, turns, lambda _, x: x + 1, x)

    assert multiply_adds(run, f32(3), jax.ShapeDtypeStruct((), jnp.int32)) == 0


class TinyModel(nn.Module):
    img_size: int | tuple[int, int]
    in_chans: int = 3

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(6, (4, 4), strides=4, name="proj")(images)
        return nn.Dense(5, name="head")(x.mean((1, 2)))


@pytest.mark.parametrize(("img_size", "size"), [(16, (16, 16)), ((8, 24), (8, 24))])
def test_describe(img_size, size):
    cost = describe(TinyModel(img_size))
    assert cost.parameters == (4 * 4 * 3 * 6 + 6) + (6 * 5 + 5)
    assert cost.multiply_adds == (size[0] * size[1] // 16) * 4 * 4 * 3 * 6 + 6 * 5
    assert cost.img_size == size


def test_vit_by_formula():
    d, depth, classes, patch = 16, 3, 5, 4
    model = create_model(
        "vit", img_size=(16, 24), patch_size=patch, embed_dim=d, depth=depth, num_heads=2,
        num_classes=classes,
    )  # fmt: skip
    patches = 4 * 6
    n = patches + 1
    embed = patches * patch * patch * 3 * d
    block = n * d * 3 * d + 2 * n * n * d + n * d * d + 2 * n * d * 4 * d
    assert describe(model).multiply_adds == embed + depth * block + d * classes
    assert describe(model) == describe(model.clone(scan=True))


def test_swin_by_formula():
    model = create_model(
        "swin", img_size=32, patch_size=2, embed_dim=8, depths=(2, 4), num_heads=(2, 4),
        window_size=4, num_classes=5,
    )  # fmt: skip
    stages = 0
    for depth, d, tokens in ((2, 8, 16 * 16), (4, 16, 8 * 8)):
        block = (
            tokens * d * 3 * d + 2 * tokens * 4 * 4 * d + tokens * d * d + 2 * tokens * d * 4 * d
        )
        stages += depth * block
    embed, merging, head = 16 * 16 * 2 * 2 * 3 * 8, 8 * 8 * 32 * 16, 16 * 5
    assert describe(model).multiply_adds == embed + stages + merging + head
    assert describe(model) == describe(model.clone(scan=True))
