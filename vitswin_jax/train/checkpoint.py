"""Checkpoints of parameters, optimizer, step and data iterator, by Orbax in the background."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from vitswin_jax.train.state import TrainState


class Checkpoints:
    """The checkpoints of one run; a context manager that ends only when all is written.

    A step's checkpoint has the items `params` and `opt_state` (arrays) and `meta` (JSON: the step,
    and the next global batch of the data, which is all there is to the iterator's state: its stream
    is a function of seed and position). What a killed process left half-written is never restored.
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
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                opt_state=ocp.args.StandardSave(state.opt_state),
                meta=ocp.args.JsonSave({"step": step, "data": {"next_batch": next_batch}}),
            ),
        )

    def restore_or(self, state: TrainState, shardings: Any) -> tuple[TrainState, int]:
        """Returns the newest checkpoint, laid out by `shardings`, and the next batch of its data.

        `state` gives structure, shapes and dtypes, and is what a run without checkpoints starts
        from, at batch 0.
        """
        if self.latest_step is None:
            return state, 0
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            shardings,
        )
        restored = self._manager.restore(
            self.latest_step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                opt_state=ocp.args.StandardRestore(abstract.opt_state),
                meta=ocp.args.JsonRestore(),
            ),
        )
        step = jax.device_put(jax.numpy.int32(restored.meta["step"]), shardings.step)
        state = TrainState(step, restored.params, restored.opt_state)
        return state, restored.meta["data"]["next_batch"]
