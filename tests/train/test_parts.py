"""Gradient accumulation: its forms, against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import mostly_long

from vitswin_jax.core.types import UserError
from vitswin_jax.nn.forms import Forms, traced_for
from vitswin_jax.train.parts import UNROLLED, check_parts, sum_over_parts

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


def summed(form, parts):
    """Returns the jitted sum in a form, or of parts that do not wait."""
    at_once = form == "at once"
    with traced_for(forms=Forms(parts="loop" if at_once else form)):
        how = jax.jit(lambda p, parts: sum_over_parts(of_part, p, parts, at_once=at_once))
        return how.lower(PARAMS, parts)


@pytest.mark.parametrize("form", [*FORMS, "at once"])
@pytest.mark.parametrize("many", mostly_long([1, 3, UNROLLED + 1], [3]))
def test_the_sum_is_that_of_a_plain_loop(form, many):
    parts = parts_of(many, 4)
    (loss, grads), outs = summed(form, parts).compile()(PARAMS, parts)
    each = [of_part(PARAMS, jax.tree.map(lambda x, i=i: x[i], parts)) for i in range(many)]
    np.testing.assert_allclose(loss, sum(value for (value, _), _ in each), rtol=1e-5)
    for name, grad in grads.items():
        want = sum(own[name] for (_, own), _ in each)
        np.testing.assert_allclose(grad, want, atol=1e-4 * float(jnp.abs(want).max()))
    np.testing.assert_allclose(outs, jnp.stack([out for _, out in each]), rtol=1e-4, atol=1e-4)


def test_few_parts_are_written_out_and_many_are_a_loop():
    def program(many):
        return summed("unrolled", parts_of(many, 2)).as_text()

    assert "stablehlo.while" not in program(UNROLLED)
    assert "stablehlo.while" in program(UNROLLED + 1)


def test_parts_at_once_do_not_wait():
    """On CPUs a part waits through a zero, made by a minimum, that depends on the one before."""
    waiting, at_once = (summed(form, parts_of(4, 2)).as_text() for form in ("unrolled", "at once"))
    assert waiting.count("stablehlo.minimum") == 3 * len(PARAMS)
    assert "stablehlo.minimum" not in at_once
    assert "stablehlo.while" not in at_once


@pytest.mark.parametrize(
    ("accum", "message"),
    [
        (
            (0, False),
            r"optim.accum_steps=0 must divide data.batch_size=12: one of 1, 2, 3, 4, 6 or 12",
        ),
        (
            (5, False),
            r"optim.accum_steps=5 must divide data.batch_size=12: one of 1, 2, 3, 4, 6 or 12",
        ),
        ((1, True), "optim.accum_at_once=True needs optim.accum_steps of 2 to 8, not 1"),
        ((12, True), "optim.accum_at_once=True needs optim.accum_steps of 2 to 8, not 12"),
    ],
)
def test_parts_that_cannot_be_are_one_line(accum, message):
    steps, at_once = accum
    with pytest.raises(UserError, match=message):
        check_parts(12, accum_steps=steps, accum_at_once=at_once)


@pytest.mark.xla_behaviour
@pytest.mark.parametrize("form", FORMS)
def test_a_program_holds_the_activations_of_one_part(form):
    """Four parts take less than half of the memory of the whole batch."""

    def temporaries(many):
        plan = summed(form, parts_of(many, 8192 // many)).compile().memory_analysis()
        return plan.temp_size_in_bytes

    assert temporaries(4) < 0.5 * temporaries(1)
