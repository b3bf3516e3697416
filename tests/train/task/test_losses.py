"""Losses by name; their values are in test_supervised.py and in the goldens."""

import jax.numpy as jnp
import numpy as np

from vitswin_jax.train.task.losses import LOSSES, Loss, make_loss


def test_a_new_loss_is_one_function_and_one_row(monkeypatch):
    def squares(logits, targets):
        return jnp.square(logits - targets).mean(-1)

    monkeypatch.setitem(LOSSES, "squares", Loss("squares", squares))
    loss = make_loss(name="squares")
    values = loss.function(jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 1.0]]))
    np.testing.assert_allclose(values, [2.5])
