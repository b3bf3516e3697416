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
    """Trains `model` from `variables` on given batches, by the step that `train.py` jits.

    Args:
        model: the model; its matrix products have the precision that JAX is set to.
        variables: its variables, {"params": ...}; they are not changed.
        batches: each has `image`, floats (b, h, w, c), normalised; `label`, int (b,); and
            optionally `mask` (b,), 0 for padding. One step per batch.
        optim: the keys of `config.optim`, with steps in place of epochs: `name`, `peak_lr`,
            `schedule` (default "constant"), `total_steps` (default: the number of batches),
            `warmup_steps`, `warmup_lr`, `end_lr`, `weight_decay`, `max_grad_norm`, `accum_steps`,
            those of `Groups`, of the schedule and of the optimizer. None: as if it were left out.
        loss: `name` (default "softmax") and `label_smoothing` in [0, 1).

    Returns:
        A `Trajectory`: `loss` (n,), `grad_norm` (n,), `logits` (n, b, k), each before the update of
        its step, and the final `variables`.

    Raises:
        UserError: a key or a value that the trainer would refuse.

    >>> import jax
    >>> import vitswin_jax
    >>> fields = dict(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    >>> model = vitswin_jax.create_model("vit", **fields)
    >>> images = np.zeros((4, 8, 8, 3), np.float32)
    >>> variables = jax.jit(model.init)(jax.random.key(0), images)
    >>> batches = [{"image": images, "label": np.array([0, 1, 2, 0])}] * 2
    >>> optim = {"name": "sgd", "peak_lr": 0.1}
    >>> vitswin_jax.train.trajectory(model, variables, batches, optim=optim).logits.shape
    (2, 4, 3)
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
