"""Gradient accumulation: its forms, against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax.nn.forms import Forms, traced_for
from vitswin_jax.train.parts import UNROLLED, sum_over_parts

INPUTS, WIDTH = 8, 256
PARAMS = {
    "a": jax.random.normal(jax.random.key(1), (INPUTS, WIDTH)),
    "b": jax.random.normal(jax.random.key(2), (WIDTH, WIDTH)),
    "c": jnp.full((WIDTH, 3), 0.5),
}
FORMS = ("loop", "unrolled")


def of_part(params, part):
    """The loss, the gradients and the outputs of a small network on a part."""

    def loss(params):
        hidden = jnp.tanh(jnp.tanh(part["x"] @ params["a"]) @ params["b"])
        out = hidden @ params["c"]
        return (part["weight"] * out**2).sum(), out

    (value, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return (value, grads), out


def parts_of(many, rows):
    x = jax.random.normal(jax.random.key(0), (many, rows, INPUTS))
    return {"x": x, "weight": jnp.arange(many, dtype=jnp.float32)[:, None, None] + 1}


def run(form, parts):
    with traced_for(forms=Forms(parts=form)):
        return jax.jit(lambda params, parts: sum_over_parts(of_part, params, parts))(PARAMS, parts)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("many", [1, 3, UNROLLED + 1])
def test_the_sum_is_that_of_a_plain_loop(form, many):
    parts = parts_of(many, 4)
    (loss, grads), outs = run(form, parts)
    each = [of_part(PARAMS, jax.tree.map(lambda x, i=i: x[i], parts)) for i in range(many)]
    np.testing.assert_allclose(loss, sum(value for (value, _), _ in each), rtol=1e-5)
    for name, grad in grads.items():
        want = sum(own[name] for (_, own), _ in each)
        np.testing.assert_allclose(grad, want, atol=1e-4 * float(jnp.abs(want).max()))
    np.testing.assert_allclose(outs, jnp.stack([out for _, out in each]), rtol=1e-4, atol=1e-4)


def test_few_parts_are_written_out_and_many_are_a_loop():
    def program(many):
        with traced_for(forms=Forms(parts="unrolled")):
            how = jax.jit(lambda params, parts: sum_over_parts(of_part, params, parts))
            return how.lower(PARAMS, parts_of(many, 2)).as_text()

    assert "stablehlo.while" not in program(UNROLLED)
    assert "stablehlo.while" in program(UNROLLED + 1)


@pytest.mark.xla_behaviour
@pytest.mark.parametrize("form", FORMS)
def test_a_program_holds_the_activations_of_one_part(form):
    """Four parts take less than half of the memory of the whole batch."""

    def temporaries(many):
        parts = parts_of(many, 8192 // many)
        with traced_for(forms=Forms(parts=form)):
            how = jax.jit(lambda params, parts: sum_over_parts(of_part, params, parts))
            plan = how.lower(PARAMS, parts).compile().memory_analysis()
        return plan.temp_size_in_bytes

    assert temporaries(4) < 0.5 * temporaries(1)
