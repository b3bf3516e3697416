"""Replays given batches through the trainer's own step, to hold against the training goldens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from vitswin_jax.core.types import Params, UserError
from vitswin_jax.train.optim.optimizers import make_optim
from vitswin_jax.train.sharding import create_mesh, shard_batch, state_shardings
from vitswin_jax.train.state import state_of_copies
from vitswin_jax.train.step import StepOptions, make_train_step
from vitswin_jax.train.task.losses import make_loss
from vitswin_jax.train.task.mixing import Mixing
from vitswin_jax.train.task.supervised import Supervised


class Trajectory(NamedTuple):
    """The results of n steps; row i is of step i, before its update."""

    loss: np.ndarray  # float32 (n,)
    grad_norm: np.ndarray  # float32 (n,), the global norm before clipping
    logits: np.ndarray  # float32 (n, b, k)
    variables: dict[str, Params]  # after the last step


def trajectory(
    model: nn.Module,
    variables: Mapping[str, Params],
    batches: Iterable[Mapping[str, Any]],
    *,
    optim: Mapping[str, Any],
    loss: Mapping[str, Any] | None = None,
) -> Trajectory:
    """Trains `model` from `variables` on `batches`, by the step that `train.py` jits.

    A batch has `image` (b, h, w, c), floats as the model takes them, `label` int (b,), and
    optionally `mask` (b,). `optim` has the keys of `config.optim`, with steps in place of epochs:
    `name`, `peak_lr`, `schedule` ("constant" where it is left out), `total_steps` (as many as there
    are batches), `warmup_steps`, `warmup_lr`, `end_lr`, `weight_decay`, `max_grad_norm`,
    `accum_steps`, those of `Groups`, and the schedule's and the optimizer's own; None is as good as
    left out. `loss` has `name` ("softmax") and `label_smoothing`.
    Raises UserError for keys and values that the trainer would refuse.
    """
    batches = list(batches)
    optim, loss = dict(optim), dict(loss or {})
    accum_steps = optim.pop("accum_steps", 1)
    smoothing = loss.pop("label_smoothing", 0.0)
    try:
        _, tx, groups = make_optim({"schedule": "constant", "total_steps": len(batches)} | optim)
        objective = make_loss(**{"name": "softmax", **loss})
    except TypeError as error:  # an unexpected or a missing key, which Python names
        raise UserError(f"trajectory: {error}.") from error

    mesh = create_mesh(data=1)
    options = StepOptions(
        Supervised(Mixing(label_smoothing=smoothing), objective),
        accum_steps=accum_steps,
        groups=groups,
        keep_logits=True,
    )
    state = state_of_copies(variables["params"], tx)
    step = make_train_step(
        model, tx, options=options, mesh=mesh, shardings=state_shardings(mesh, state)
    )
    rows = []
    for batch in batches:
        mask = np.ones(len(batch["label"]), np.float32)
        state, metrics = step(state, shard_batch({"mask": mask, **batch}, mesh), jax.random.key(0))
        rows.append(jax.device_get(metrics))
    losses, norms, logits = (
        np.stack([row[key] for row in rows]) for key in ("loss", "grad_norm", "logits")
    )
    return Trajectory(losses, norms, logits, {"params": state.params})
