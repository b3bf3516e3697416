"""Checkpoints of parameters, optimizer, step and data iterator, by Orbax in the background."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from vitswin_jax.train.state import TrainState


class Checkpoints:
    """The checkpoints of one run; a context manager that ends only when all is written.

    A step's checkpoint has the items `params`, `opt_state` and, where there is one, `ema` (arrays),
    and `meta` (JSON: the step, and the next global batch of the data, which is all there is to the
    iterator's state: its stream is a function of seed and position). What a killed process left
    half-written is never restored.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, *, next_batch: int) -> None:
        """Starts to write a state; nothing happens where its step is on disk already."""
        step = int(state.step)
        if step == self.latest_step:
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in _trees(state).items()}
        meta = ocp.args.JsonSave({"step": step, "data": {"next_batch": next_batch}})
        # Forced, Orbax does not ask whether hosts are to stop, which counts steps of its own.
        self._manager.save(step, args=ocp.args.Composite(**items, meta=meta), force=True)

    def restore_or(
        self, create: Callable[[], TrainState], layout: TrainState
    ) -> tuple[TrainState, int]:
        """Returns the newest checkpoint, laid out by `layout`, and the next batch of its data.

        Where there is none it returns what `create` does, and 0.
        """
        if self.latest_step is None:
            return create(), 0
        items = {name: ocp.args.StandardRestore(tree) for name, tree in _trees(layout).items()}
        restored = self._manager.restore(
            self.latest_step, args=ocp.args.Composite(**items, meta=ocp.args.JsonRestore())
        )
        step = jax.device_put(jax.numpy.int32(restored.meta["step"]), layout.step.sharding)
        trees = {name: restored[name] for name in items}
        return TrainState(step=step, **trees), restored.meta["data"]["next_batch"]


def _trees(state: TrainState) -> dict[str, Any]:
    """Returns the trees of arrays of a state; one that is None has no item."""
    trees = {"params": state.params, "opt_state": state.opt_state, "ema": state.ema}
    return {name: tree for name, tree in trees.items() if tree is not None}
