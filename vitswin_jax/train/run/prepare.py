"""The parts of a run, built from its config before the first step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vitswin_jax.core.choices import Faults, one_of
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import Source, UserError, listed
from vitswin_jax.data.augment.transforms import Preprocess, TrainTransform
from vitswin_jax.data.augment.views import Views
from vitswin_jax.data.pipeline import EvalBatches, Transform, shapes_of
from vitswin_jax.data.sources.labels import make_class_weights
from vitswin_jax.nn.quantized import SCHEMES, multiplies_codes
from vitswin_jax.train.optim.ema import make_ema
from vitswin_jax.train.optim.groups import Groups
from vitswin_jax.train.optim.lora import make_lora
from vitswin_jax.train.optim.optimizers import make_optim
from vitswin_jax.train.parts import check_parts
from vitswin_jax.train.run.distil import check_distill, make_distillation, taught
from vitswin_jax.train.run.dtype import with_dtype
from vitswin_jax.train.run.inputs import Batches, Opener, make_inputs, open_data
from vitswin_jax.train.run.own import NONE, Own, OwnTransform, own_loss, own_optimizer
from vitswin_jax.train.run.plan import Plan, make_plan, split_fields
from vitswin_jax.train.run.sizes import Schedule, make_sizes
from vitswin_jax.train.run.start import Start, open_start
from vitswin_jax.train.run.unlabelled import (
    Probes,
    Unlabelled,
    make_probes,
    make_task,
    make_views,
    model_section,
)
from vitswin_jax.train.sharding import check_batch_size, create_mesh
from vitswin_jax.train.step import StepOptions
from vitswin_jax.train.task.erasing import Erasing
from vitswin_jax.train.task.losses import make_loss
from vitswin_jax.train.task.mixing import Mixing

log = logger(__name__)


@dataclass(frozen=True)
class Run:
    """All that is fixed before the first step."""

    mesh: Mesh
    start: Start
    train: Source
    test: Source
    make_train_batches: Callable[[int, int], Batches]  # from one global batch to another
    test_batches: EvalBatches
    plan: Plan
    schedule: optax.Schedule | None
    """The learning rate by step; None where only a user's optimizer knows it."""
    tx: optax.GradientTransformation
    options: StepOptions
    head_bias: float
    teacher: Start | None
    unlabelled: Unlabelled | None
    probes: Probes | None
    sizes: Schedule  # of training's images
    shapes: Mapping[str, tuple[int, ...]]  # of an example's pixels, by their keys in a batch
    own: Own

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        return self.start.model

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of evaluation and of all later uses of the weights."""
        return self.start.preprocess

    @property
    def facts(self) -> dict[str, Any]:
        """The facts in which hosts with the same config may differ, because their disks differ."""
        facts: dict[str, Any] = {"model.dtype": jnp.dtype(self.model.dtype).name}
        for what, source in (("data.train_split", self.train), ("data.test_split", self.test)):
            facts[f"images of {what}"] = len(source)
            facts[f"classes of {what}"] = list(source.class_names)
        if self.start.origin is not None:
            facts["SHA-256 of init_from"] = self.start.origin.sha256
        return facts

    @property
    def state(self) -> dict[str, Any]:
        """Arguments of `create_state` and `state_layout` besides the model and the optimizer."""
        return {
            "image_shape": (*self.preprocess.img_size, self.preprocess.channels),
            "mesh": self.mesh,
            "lora": self.options.lora,
            "ema": self.options.ema,
            "task": self.options.task,
        }


def prepare(
    config: ConfigDict,
    workdir: Path | None = None,
    *,
    devices: Sequence[jax.Device] | None = None,
    opener: Opener | None = None,
    own: Own = NONE,
) -> Run:
    """Builds everything a run needs from its config, each section handed over whole.

    If `workdir` already has a run from weights, the model is as it was at that run's start.
    `own` has what a Python user passed in place of what the config names.
    `vitswin plan` passes `devices` of a topology without hardware, and an `opener` in place of
    `open_data` if the data is not available.
    Raises UserError for what does not fit, before any file is written.
    """
    mesh = create_mesh(**config.mesh, devices=devices)
    device = mesh.devices.flat[0]
    config = with_dtype(config, device, workdir)
    check_quantize(config.quantize, device)
    data, loss = dict(config.data), dict(config.loss)
    augment, optim = dict(config.augment), dict(config.optim)
    for name in ("batch_size", "eval_batch_size"):
        check_batch_size(f"data.{name}", data[name], mesh)
    opener = opener or functools.partial(open_data, dataset=own.dataset)
    train, test = opener(data, seed=config.seed)
    head_bias, aux_weight = loss.pop("head_bias_init"), loss.pop("aux_weight")
    objective = build_objective(train, class_weights=data.pop("class_weights"), own=own, **loss)
    pretrain, unlabelled = model_section(config.to_dict()), check_distill(config.to_dict())
    own.check_labels(unlabelled)
    start = open_start(config, train, workdir, pretrain, unlabelled)
    preprocess, repeats = start.preprocess, augment.pop("repeats")
    augmented = build_augmentation(augment, preprocess, config.pretrain.method, own=own)
    plan = make_plan(
        optim, dict(config.run), num_examples=len(train), batch_size=data["batch_size"]
    )
    accum = {key: optim.pop(key) for key in ("accum_steps", "accum_at_once")}
    check_parts(data["batch_size"], **accum)
    rate, tx, groups = build_optimizer(optim | plan.schedule_counts(), own=own)
    part_size = data["batch_size"] // accum["accum_steps"]
    check_batch_size("data.batch_size / optim.accum_steps", part_size, mesh)
    sizes = make_sizes(data.pop("img_sizes"), start.model, steps_per_epoch=plan.steps_per_epoch)
    make_train_batches, make_test_batches = make_inputs(
        train,
        transform=augmented.transform,
        sizes=sizes,
        preprocess=preprocess,
        mesh=mesh,
        seed=config.seed,
        repeats=repeats,
        **data,
    )
    options, teacher = build_options(
        config,
        train,
        start,
        plan,
        augmented,
        objective=objective,
        pretrain=pretrain,
        aux_weight=aux_weight,
        **accum,
        groups=groups,
    )
    return Run(
        mesh=mesh,
        start=start,
        train=train,
        test=test,
        make_train_batches=make_train_batches,
        test_batches=make_test_batches(test),
        plan=plan,
        schedule=rate,
        tx=tx,
        options=options,
        head_bias=head_bias,
        teacher=teacher,
        sizes=sizes,
        shapes=shapes_of(augmented.transform),
        unlabelled=unlabelled,
        probes=make_probes(train, test, make_test_batches, unlabelled, dict(config.pretrain)),
        own=own,
    )


def check_quantize(name: str, device: Any) -> None:
    """Raises UserError for an unknown `config.quantize`.

    Logs a line where the jax.Device has no such products.
    """
    one_of("quantize", name, ("none", *SCHEMES))
    if name != "none" and not multiplies_codes(name, device):
        log.info(
            "quantize=%s: XLA emulates 8-bit products on this device (%s): the results are "
            "those of quantised training, without a gain in time or memory.",
            name,
            device.device_kind,
        )


class Augmentation(NamedTuple):
    """Of each image in the workers, of each on the device, and of pairs of images."""

    transform: Transform
    erasing: Erasing
    mixing: Mixing


def build_augmentation(
    section: Mapping[str, Any], preprocess: Preprocess, method: str | None, *, own: Own
) -> Augmentation:
    """Divides `config.augment` among what reads it; raises one UserError for all that is wrong.

    A user's own function is in place of the transform of each image. The `method` of a run
    without labels may take several views.
    """
    kinds = (TrainTransform, Views, Erasing, Mixing)
    parts = split_fields(section, *kinds)
    parts[0] |= {"img_size": preprocess.img_size, "mean": preprocess.mean}
    built, faults = [], Faults()
    for kind, fields in zip(kinds, parts, strict=True):
        try:
            built.append(kind(**fields))
        except UserError as error:
            faults.append(str(error).removeprefix("augment: ").removesuffix("."))
    faults.check("augment: ")
    colours = [key for key in ("color_jitter", "hue", "grayscale") if section.get(key)]
    if preprocess.channels == 1 and colours:
        log.info("augment: images of one channel have no hue and saturation (%s).", listed(colours))
    transform, views, erasing, mixing = built
    transform = transform if own.augment is None else OwnTransform(own.augment, preprocess)
    return Augmentation(make_views(transform, views, method), erasing, mixing)


def build_objective(train: Source, *, name: str, class_weights: Any, own: Own) -> dict[str, Any]:
    """Returns the loss, a user's own or by its name, and the class weights of `Supervised`.

    Raises UserError if images have several labels and the loss lets classes compete.
    """
    loss = make_loss(name=name) if own.loss is None else own_loss(own.loss, len(train.class_names))
    if train.multi_label and loss.competing:
        raise UserError(
            f"loss.name='{name}' but {train.name} has several labels per image; loss.name must "
            "be 'sigmoid'."
        )
    return {"loss": loss, "class_weights": make_class_weights(train, class_weights)}


def build_optimizer(
    section: Mapping[str, Any], *, own: Own
) -> tuple[optax.Schedule | None, optax.GradientTransformation, Groups]:
    """Returns the learning rate by step, the optimizer and its groups; a user's own if given.

    The rate is None where only a user's optimizer knows it.
    """
    schedule, tx, groups = make_optim(section)
    if own.optimizer is None:
        return schedule, tx, groups
    return *own_optimizer(own.optimizer, schedule, groups), groups


def build_options(
    config: ConfigDict,
    train: Source,
    start: Start,
    plan: Plan,
    augmented: Augmentation,
    *,
    objective: Mapping[str, Any],
    pretrain: Mapping[str, Any] | None,
    **fields: Any,
) -> tuple[StepOptions, Start | None]:
    """Returns the options of the train step, and the weights of its teacher; None without one.

    `fields` are those of the options that no section here gives.
    """
    distillation, teacher = make_distillation(train, start, **config.distill)
    task, average = taught(augmented.mixing, distillation, objective), make_ema(**config.ema)
    if pretrain is not None:
        task, own_average = make_task(pretrain["method"], start.model, augmented.transform, plan)
        average = own_average or average
    options = StepOptions(
        task,
        mean=start.preprocess.mean,
        std=start.preprocess.std,
        lora=make_lora(**config.lora),
        ema=average,
        erasing=augmented.erasing,
        quantize=config.quantize,
        **fields,
    )
    return options, teacher
