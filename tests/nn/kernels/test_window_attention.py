"""The fused window attention against `map_windows` and `attend`, its steps run as ordinary JAX.

What needs no GPU is here: values, gradients, what is in memory, and that Triton's compiler is
handed programs it takes.
"""

import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from kinds import mostly_long

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.nn import choices, execution
from vitswin_jax.nn.attention import attend
from vitswin_jax.nn.forms import traced_for
from vitswin_jax.nn.kernels import window_kernel
from vitswin_jax.nn.kernels.window_attention import window_attention
from vitswin_jax.nn.windows import Cut, map_windows, pad_to_multiple

MASK = -3.0  # so little that what is masked still shows


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Has each program take several windows, and the last fewer."""
    monkeypatch.setattr(window_kernel, "PROGRAMS", 6)


def draw(size, window, *, heads=2, channels=4, batch=2, dtype=jnp.float32):
    """Returns queries, keys and values of unpadded maps, biases, and what pulls at the output."""
    rng = np.random.default_rng(0)
    n = math.prod(window)
    shapes = (batch, *size, 3, heads, channels), (heads, n, n), (batch, *size, heads, channels)
    qkv, bias, pull = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return qkv.astype(dtype), bias, pull.astype(dtype)


def plain(qkv, bias, *, cut, scale=0.5):
    """Maps are rolled, cut and put together again."""
    shape = qkv.shape

    def mix(windows, mask):
        q, k, v = jnp.moveaxis(windows.reshape(*windows.shape[:-1], *shape[3:]), (3, 4), (0, 3))
        biases = (bias,)
        if mask is not None:
            biases += (jnp.where(mask, 0.0, MASK)[:, None],)
        out = attend(q * scale, k, v, biases=biases)
        out = jnp.moveaxis(out, 2, 3).reshape(*windows.shape[:-1], -1)
        return jnp.concatenate([out, 0 * out, 0 * out], -1)  # as many channels as were given

    flat = qkv.reshape(*shape[:3], -1)
    out = map_windows(
        mix,
        flat,
        cut,
    )
    return out[..., : out.shape[-1] // 3].reshape(*shape[:3], *shape[4:])


def fused(qkv, bias, *, cut, scale=0.5, interpret=True):
    """The kernel on the padded map, cut off again."""
    shape = qkv.shape
    padded = pad_to_multiple(qkv.reshape(*shape[:3], -1), cut.window_size)
    out = window_attention(
        padded.reshape(*padded.shape[:3], *shape[3:]),
        bias,
        cut=cut,
        size=shape[1:3],
        scale=scale,
        mask_value=MASK,
        interpret=interpret,
    )
    return out[:, : shape[1], : shape[2]]


def value_and_pulled(attention, qkv, bias, pull):
    """Returns the output, and the gradients of queries, keys, values and biases."""

    @jax.jit
    def both(qkv, bias, pull):
        out, back = jax.vjp(attention, qkv, bias)
        return out, *back(pull)

    return both(qkv, bias, pull)


CUTS = [  # size of the map, how it is cut into windows
    ((4, 4), Cut((4, 4), (0, 0), True)),
    ((8, 8), Cut((4, 4), (2, 2), True)),
    ((14, 14), Cut((7, 7), (3, 3), True)),  # 49 tokens in 64 lanes
    ((8, 16), Cut((8, 8), (0, 4), True)),
    ((12, 24), Cut((12, 12), (0, 6), False)),  # 144 tokens, in blocks
    ((6, 5), Cut((4, 4), (2, 2), True)),
    ((6, 5), Cut((4, 4), (2, 2), False)),
    ((2, 3), Cut((4, 4), (2, 2), True)),
    ((2, 3), Cut((4, 4), (2, 2), False)),
    ((4, 7), Cut((2, 3), (1, 1), True)),
    ((4, 7), Cut((2, 3), (1, 1), False)),
]


@pytest.mark.parametrize(("size", "cut"), mostly_long(CUTS, CUTS[2::4]))
def test_values_and_gradients_are_the_plain_ones(size, cut):
    arrays = draw(size, cut.window_size, channels=5)
    got, want = (
        value_and_pulled(functools.partial(attention, cut=cut), *arrays)
        for attention in (fused, plain)
    )
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))


def test_in_bfloat16_it_is_as_near_to_float32_as_the_plain_one():
    cut = Cut((7, 7), (3, 3), True)
    narrow = draw((14, 14), (7, 7), channels=32, dtype=jnp.bfloat16)
    wide = [x.astype(jnp.float32) for x in narrow]
    run = functools.partial(value_and_pulled, functools.partial(plain, cut=cut, scale=32**-0.5))
    want, near = run(*wide), run(*narrow)
    got = value_and_pulled(functools.partial(fused, cut=cut, scale=32**-0.5), *narrow)
    assert [x.dtype for x in got] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for one, other, exact in zip(got, near, want, strict=True):
        error, plain_error = (
            float(jnp.abs(x.astype(jnp.float32) - exact).max()) for x in (one, other)
        )
        assert error <= 1.5 * plain_error


SWINS = [
    ("swin", {}),
    ("swinv2", {"pretrained_window_sizes": (0,)}),
    ("swin", {"pad_before_roll": False}),
    ("swin_moe", {"pretrained_window_sizes": (0,), "moe_stages": ()}),
]


@pytest.mark.parametrize(("family", "fields"), mostly_long(SWINS, SWINS[:1]))
def test_a_model_gives_its_numbers_and_gradients(monkeypatch, random_params, family, fields):
    """Pad tokens have the projection's bias, and Swin V2 its cosines and temperatures."""
    interpreted = functools.partial(execution._mix_fused, interpret=True)
    monkeypatch.setitem(execution.WINDOWS, "fused", interpreted)
    model = create_model(
        family,
        img_size=16,
        patch_size=2,
        embed_dim=8,
        depths=(2,),
        num_heads=(2,),
        window_size=3,
        num_classes=3,
        **fields,
    )
    images = jax.random.normal(jax.random.key(0), (2, 16, 14, 3))
    params = random_params(model, images)

    def loss(params, images, attn_impl):
        out = model.clone(attn_impl=attn_impl).apply({"params": params}, images)
        return (out**2).sum(), out

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    want = run(params, images, "xla")
    with traced_for("gpu"):
        got = run(params, images, "fused")
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4 * float(jnp.abs(y).max()) + 1e-6),
        got,
        want,
    )


def outside_kernels(jaxpr):
    """Gives the shape of every array that a traced program has outside its kernels."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        if equation.primitive.name != "pallas_call":
            for inner in core.jaxprs_in_params(equation.params):
                yield from outside_kernels(inner)


@pytest.mark.parametrize("window", [(7, 7), (12, 12)])
def test_neither_logits_nor_windows_are_outside_the_kernel(window):
    """Nothing is larger than the map's queries, keys and values, or is a window's size."""
    size = tuple(4 * side for side in window)
    arrays = draw(size, window, heads=1, batch=4, channels=32)
    n, windows = math.prod(window), 4 * 16
    cut = Cut(window, (3, 3), True)

    def largest(attention):
        attention = functools.partial(attention, cut=cut)
        both = functools.partial(value_and_pulled, attention)
        shapes = list(outside_kernels(jax.make_jaxpr(both)(*arrays).jaxpr))
        by_window = [x for x in shapes if n in x and math.prod(x) >= windows * n * 32]
        return max(map(math.prod, shapes)), by_window

    assert largest(fused) == (arrays[0].size, [])
    most, by_window = largest(plain)
    assert most >= windows * n * n and by_window


def lowered_for_cuda(function, *arrays):
    """Returns the program for NVIDIA's GPUs, of which none is needed here."""
    device = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("window", "kernels"), [((7, 7), 2), ((8, 8), 2), ((12, 12), 3)])
def test_the_kernels_become_triton_programs(monkeypatch, window, kernels, dtype):
    monkeypatch.undo()
    cut = Cut(window, (3, 3), True)
    arrays = draw((24, 24), window, channels=32, dtype=dtype)
    attention = functools.partial(fused, cut=cut, interpret=False)
    program = lowered_for_cuda(functools.partial(value_and_pulled, attention), *arrays)
    assert program.count("__gpu$xla.gpu.triton") == kernels


def test_on_a_mesh_batch_and_heads_stay_divided():
    """Each device computes its part, and only the biases' gradient is summed over the batch."""
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=2 * (AxisType.Auto,))
    cut = Cut((4, 4), (2, 2), True)
    arrays = draw((8, 8), (4, 4), batch=8, heads=4)
    specs = P("data", None, None, None, "tensor"), P("tensor"), P("data", None, None, "tensor")
    divided = [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in zip(arrays, specs, strict=True)
    ]

    @jax.jit
    def both(qkv, bias, pull):
        out, back = jax.vjp(functools.partial(fused, cut=cut), qkv, bias)
        return out, *back(pull)

    want, got = both(*arrays), both(*divided)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert got[0].sharding.is_equivalent_to(NamedSharding(mesh, specs[2]), 5)
    program = both.lower(*divided).compile().as_text()
    assert "all-gather" not in program and "all-to-all" not in program
    assert "all-reduce" in program


def tiny(**fields):
    return create_model(
        "swin", img_size=8, patch_size=1, embed_dim=4, depths=(2,), num_heads=(2,), **fields
    )


def test_weights_are_still_left_where_they_are_asked_for():
    """And parameters are made, on any device: both go XLA's way."""
    images = jnp.zeros((1, 8, 8, 3))
    model = tiny(attn_impl="fused", window_size=4)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    apply = functools.partial(model.apply, mutable=["intermediates"])
    _, left = jax.eval_shape(apply, variables, images)
    weights = left["intermediates"]["stage_0"]["block_1"]["attn"]["attention"][0]
    assert weights.shape == (1, 4, 2, 16, 16)


def test_what_it_cannot_do_is_said(monkeypatch):
    images = jnp.zeros((1, 8, 8, 3))
    model = tiny(attn_impl="fused", window_size=4)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    backend = jax.default_backend()

    def trace(model, **options):
        jax.eval_shape(functools.partial(model.apply, **options), variables, images)

    with pytest.raises(UserError, match=f"is for GPUs, and this is {backend}; use 'auto'"):
        trace(model)
    with pytest.raises(UserError, match="up to 256 tokens, and 24x24 has 576; use 'xla'"):
        fused(*draw((24, 24), (24, 24))[:2], cut=Cut((24, 24), (0, 0), True))
    with pytest.raises(UserError, match="attn_impl='cudnn' must be one of auto, xla, pairs, fused"):
        create_model("swin", attn_impl="cudnn")
    with pytest.raises(UserError, match="attn_impl='fused' must be one of auto, xla, cudnn"):
        create_model("vit_tiny_patch16_224", attn_impl="fused")
    with traced_for("gpu"):
        with pytest.raises(UserError, match="'fused' does not take attention dropout; use 'auto'"):
            trace(model.clone(attn_drop_rate=0.1), train=True, rngs={"dropout": jax.random.key(0)})
        choices._gpu.cache_clear()
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="does not take a JAX without Pallas's way through"):
            trace(model)
    choices._gpu.cache_clear()
