"""Memory and operations of a run's train step, which is compiled but not run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vitswin_jax.core.types import Params, Source, UserError
from vitswin_jax.data.sources.described import describe_source
from vitswin_jax.nn.placement import SLICE
from vitswin_jax.plan.collectives import Traffic
from vitswin_jax.plan.compiled import bytes_of, gradients_between, measure
from vitswin_jax.plan.cost import multiply_adds
from vitswin_jax.plan.pace import Pace, pace_of
from vitswin_jax.plan.topology import Rates, Topology
from vitswin_jax.train.run.compile import make_step
from vitswin_jax.train.run.inputs import open_data
from vitswin_jax.train.run.prepare import Run, prepare
from vitswin_jax.train.sharding import batch_sharding, state_shardings
from vitswin_jax.train.slices import count_slices
from vitswin_jax.train.state import TrainState, state_layout

STATE = ("parameters", "optimizer", "average", "teacher")


@dataclass(frozen=True)
class Budget:
    """A train step's size; bytes are one device's."""

    model: str
    topology: str
    mesh: Mapping[str, int]
    batch_size: int
    parameters: int
    flops: int
    """A step's, on all devices: two for each multiply-add, of the passes back and again too."""
    memory: Mapping[str, int]
    """Bytes by kind: what the step is given, and what it needs besides."""
    usable: int
    """Bytes that a device has for programs."""
    traffic: Mapping[str, Traffic] | None
    """By kind of collective, inside a slice; None where the compiler gave up."""
    between_slices: Mapping[str, Traffic] | None
    """By kind of collective, between slices: empty for one slice."""
    gradients: int
    """Bytes between slices, on one device, if only gradients leave a slice: at most."""
    rates: Rates | None

    @property
    def total(self) -> int:
        """Bytes that a device needs."""
        return sum(self.memory.values())

    @property
    def state(self) -> int:
        """Bytes that a device holds from step to step, whatever the batch."""
        return sum(self.memory[kind] for kind in STATE)

    @property
    def fits(self) -> bool:
        """Whether the compiler has a program, and the device the memory for it."""
        return self.traffic is not None and self.total <= self.usable

    @property
    def only_gradients(self) -> bool | None:
        """Whether only gradients leave a slice; None for one slice, or without a program.

        They are summed, so another kind of collective is not theirs, and nor are more bytes.
        """
        if not self.between_slices:
            return None
        sums = self.between_slices.get("all-reduce", Traffic(0, 0))
        return set(self.between_slices) <= {"all-reduce"} and sums.nbytes <= self.gradients

    @property
    def pace(self) -> Pace | None:
        """The time of a step by published rates; None where there are none, or no program."""
        if self.traffic is None or self.between_slices is None or self.rates is None:
            return None
        flops = self.flops / math.prod(self.mesh.values())
        return pace_of(flops, self.traffic, self.between_slices, self.rates)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as plain data."""
        pace = self.pace
        return dataclasses.asdict(self) | {
            "total": self.total,
            "fits": self.fits,
            "only_gradients": self.only_gradients,
            "pace": pace and dataclasses.asdict(pace) | {"share": pace.share},
        }


def make_budget(config: ConfigDict, topology: Topology, *, classes: int | None = None) -> Budget:
    """Compiles the step of a run with this config for a topology, on shapes alone.

    The data is as `describe_data` says. Weights of `init_from` are not read: what they would
    change of the model is nothing of its size. Raises UserError as the run itself would.
    """
    run, state = _lay_out(config, topology, classes)
    teacher = None if run.teacher is None else _laid_out(run.teacher.model, run)
    batch = batch_layout(run)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shardings, teacher_shardings = jax.tree.map(lambda leaf: leaf.sharding, (state, teacher))
    step = make_step(run, shardings, teacher_shardings)
    arguments = (state, batch, key) if teacher is None else (state, batch, key, teacher)
    given = {
        "parameters": bytes_of(state.params),
        "optimizer": bytes_of(state.opt_state),
        "average": bytes_of((state.ema, state.kept)),
        "teacher": bytes_of(teacher),
        "batch": bytes_of(batch),
    }
    slices = run.mesh.shape.get(SLICE, 1)
    owners = [i * slices // run.mesh.size for i in range(run.mesh.size)]
    memory, traffic, between = measure(step.trace(*arguments).lower(), given, owners)
    return Budget(
        model=config.model.name,
        topology=topology.name,
        mesh=dict(run.mesh.shape),
        batch_size=config.data.batch_size,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        flops=2 * multiply_adds(step, *arguments),
        memory=memory,
        usable=topology.usable,
        traffic=traffic,
        between_slices=between,
        gradients=run.options.accum_steps * gradients_between(state.params, run.mesh),
        rates=topology.rates,
    )


def describe_data(data: dict[str, Any], *, seed: int, classes: int | None) -> tuple[Source, Source]:
    """Returns the train and the test split, of which classes and length count.

    They are as `classes` or the table of known datasets say, and only else are the data's own.
    Takes from `data` what `open_data` takes. Raises UserError where nothing says the classes.
    """
    dataset = data["dataset"]
    splits = [data[f"{name}_split"] for name in ("train", "test")]
    train, test = (describe_source(dataset, split=split, classes=classes) for split in splits)
    if train is not None and test is not None:
        return open_data(data, seed=seed, opened=(train, test))
    try:
        return open_data(data, seed=seed)
    except UserError as error:
        raise UserError(
            f"data.dataset={dataset} cannot be opened, and a plan needs its number of classes: "
            f"give --classes ({str(error).rstrip('.')})."
        ) from error


def batch_layout(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape, dtype and sharding of every array of a run's batch."""
    size, sharding = run.plan.batch_size, batch_sharding(run.mesh)
    labels = ((size, len(run.train.class_names)), jnp.float32)
    arrays = {
        **{name: ((size, *shape), jnp.uint8) for name, shape in run.shapes.items()},
        "label": labels if run.train.multi_label else ((size,), jnp.int32),
        "mask": ((size,), jnp.float32),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in arrays.items()
    }


def find_changes(
    config: ConfigDict, topology: Topology, budget: Budget, *, classes: int | None = None
) -> Iterator[tuple[str, Budget]]:
    """Compiles changes of a config, those first that cost a run least, until one makes it fit.

    Gives each as the command line has it, with its budget; `budget` is that without a change.
    What cannot help is left out: where the state alone is too large, all but fsdp, and a part of
    a batch that the mesh does not divide.
    """
    for change in changes_that_save(config, topology, classes=classes):
        if budget.state > budget.usable and "mesh.fsdp" not in change:
            continue
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(change)
        try:
            budget = make_budget(changed, topology, classes=classes)
        except UserError:
            continue
        yield " ".join(f"--config.{key}={value}" for key, value in change.items()), budget
        if budget.fits:
            return


def changes_that_save(
    config: ConfigDict, topology: Topology, *, classes: int | None = None
) -> Iterator[dict[str, Any]]:
    """Gives the keys of changes that may save memory, the cheapest first.

    Parts of a batch cost nothing but small products, rematerialisation a forward pass, fsdp
    traffic; of fsdp only the largest that divides the model.
    """
    at_once = config.optim.accum_at_once
    waiting: dict[str, Any] = {"optim.accum_at_once": False} if at_once else {}
    parts: list[dict[str, Any]] = [waiting] if waiting else []
    parts += [{"optim.accum_steps": n} | waiting for n in (2, 4, 8) if n > config.optim.accum_steps]
    remat: dict[str, Any] = {} if config.model.remat in (True, "full") else {"model.remat": "full"}
    yield from parts
    if remat:
        yield remat
        yield from (remat | part for part in parts)
    n = len(topology.devices) // count_slices(topology.devices, config.mesh.slices)
    for size in [k for k in range(n, max(1, config.mesh.fsdp), -1) if n % k == 0]:
        mesh: dict[str, Any] = {"mesh.data": -1, "mesh.fsdp": size}
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(mesh)
        try:
            _lay_out(changed, topology, classes)
        except UserError:
            continue
        if remat:
            yield mesh
        yield from (mesh | remat | part for part in ({}, *parts))
        return


def _lay_out(config: ConfigDict, topology: Topology, classes: int | None) -> tuple[Run, TrainState]:
    """Returns a run on a topology, and the layout of its state."""
    config = config.copy_and_resolve_references()
    config.init_from = None

    def opener(data: dict[str, Any], *, seed: int) -> tuple[Source, Source]:
        return describe_data(data, seed=seed, classes=classes or config.model.num_classes)

    run = prepare(config, devices=topology.devices, opener=opener)
    return run, state_layout(run.model, run.tx, **run.state)


def _laid_out(model: Any, run: Run) -> Params:
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, *run.state["image_shape"])))
    )["params"]
    shardings = state_shardings(run.mesh, {"params": shapes})["params"]
    return jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        shapes,
        shardings,
    )
