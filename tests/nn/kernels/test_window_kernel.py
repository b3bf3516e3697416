"""What the kernels do that their numbers do not show (test_window_attention.py has those)."""

import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax.nn.kernels.window_kernel import Tiling, WindowTask, _find
from vitswin_jax.nn.windows import Cut


@pytest.mark.parametrize("pad_before_roll", [True, False])
def test_each_token_is_found_once_and_none_that_is_not_there(pad_before_roll):
    """What a kernel reads elsewhere does not show in its numbers here, and ends it on a GPU."""
    cut = Cut((2, 3), (1, 1), pad_before_roll)
    task = WindowTask(cut, (3, 7), 1.0, -100.0, interpret=True)
    plan = Tiling(task, (2, 4, 9, 3, 1, 4))
    assert (plan.windows, plan.lanes) == (12, 16)
    found = [_find(plan, jnp.int32(window), jnp.arange(16)) for window in range(12 + 3)]
    rows = np.concatenate([tokens.rows[tokens.there] for tokens in found])
    np.testing.assert_array_equal(np.sort(rows), np.arange(2 * 4 * 9))
