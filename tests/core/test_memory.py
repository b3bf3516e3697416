"""A lack of memory, whoever notices it, is one line with a way out."""

import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax.core.memory import in_one_line_without_memory
from vitswin_jax.core.types import UserError

HUGE = 2**44  # numbers: more than any machine has


@pytest.mark.parametrize(
    ("ask", "amount"),
    [
        (lambda: jnp.zeros(HUGE), r" \(70368.7 GB more were asked for\)"),
        (lambda: np.ones(HUGE), r" \(140737.5 GB more were asked for\)"),
        (lambda: bytearray(2**55), ""),
    ],
    ids=["XLA", "NumPy", "Python"],
)
def test_a_lack_of_memory_is_one_line_with_advice(ask, amount):
    with (
        pytest.raises(UserError, match=rf"^out of memory{amount}; halve the batch\.$"),
        in_one_line_without_memory("halve the batch."),
    ):
        ask()


def test_other_errors_are_left():
    for error in (ValueError("RESOURCE_EXHAUSTED"), RuntimeError("INTERNAL: no")):
        with pytest.raises(type(error), match=str(error)), in_one_line_without_memory("."):
            raise error
