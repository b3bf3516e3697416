"""Training from Python: a model, data as objects or by name, and objects of the user."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
from ml_collections import ConfigDict

from vitswin_jax.core.recipes import ANY_MODEL, FROM_WEIGHTS
from vitswin_jax.core.rows import read_rows
from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.data.sources.objects import open_objects
from vitswin_jax.data.sources.splits import Dataset
from vitswin_jax.models.registry import model_kwargs
from vitswin_jax.report.results import PretrainingResult, Result
from vitswin_jax.train.hosts.signals import StoppedError
from vitswin_jax.train.keep.callbacks import Callbacks
from vitswin_jax.train.keep.working import working_in
from vitswin_jax.train.run.overrides import set_keys, set_short
from vitswin_jax.train.run.own import (
    Augment,
    LossFunction,
    Metric,
    Optimizer,
    Own,
    OwnCallback,
    OwnLogger,
)
from vitswin_jax.train.run.recipe import read_recipe, set_model, set_module
from vitswin_jax.trainer import train_and_evaluate
from vitswin_jax.weights.open import open_pretrained
from vitswin_jax.weights.runs import METRICS

if TYPE_CHECKING:
    ModelOrName = str | nn.Module | None
    Number = int | float
else:  # anything may be passed, and what cannot be used raises UserError
    ModelOrName = Number = Any


@dataclass(frozen=True)
class Fitted:
    """The result of `fit`: the trained model, and how it was trained.

    Attributes:
        model: the Linen module.
        variables: its variables: `model.apply(variables, images)` gives float32 logits (b, k).
        preprocess: a function from an image, uint8 (h, w, c) in [0, 255], to the input of the
            model, float32 (H, W, c).
        class_names: a name for each of the k classes.
        history: the rows of `metrics.jsonl`, each with `step` and `epoch`: those of training have
            `train/loss`, ..., those of evaluations `test/loss`, `test/accuracy` in [0, 1], ...
        result: the last evaluation; `print(result)` shows what `vitswin train` prints.
        workdir: the folder of the run, or None if none was given.

    >>> rows = [{"step": 1, "train/loss": 2.3}, {"step": 2, "train/loss": 1.9}, {"step": 2}]
    >>> fitted = Fitted(None, {}, None, ("cat", "dog"), rows, None, None)  # `fit` returns one
    >>> fitted.column("train/loss")
    ([1, 2], [2.3, 1.9])
    """

    model: nn.Module = field(repr=False)
    variables: Mapping[str, Any] = field(repr=False)
    preprocess: Preprocess
    class_names: tuple[str, ...]
    history: Sequence[Mapping[str, Any]] = field(repr=False)
    result: Result | PretrainingResult
    workdir: Path | None

    @property
    def test_accuracy(self) -> float:
        """The share of test images whose class was predicted, in [0, 1]; NaN without labels."""
        return getattr(self.result, "test_accuracy", float("nan"))

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Returns (steps, values) of one number of the history, such as "test/accuracy"."""
        rows = [row for row in self.history if row.get(name) is not None]
        return [row["step"] for row in rows], [row[name] for row in rows]


def fit(
    model: ModelOrName,
    data: Any,
    *,
    test: Any = None,
    class_names: Sequence[str] | None = None,
    recipe: str | ConfigDict | None = None,
    init_from: str | None = None,
    workdir: str | os.PathLike[str] | None = None,
    epochs: Number | None = None,
    batch_size: Number | None = None,
    lr: Number | None = None,
    img_size: int | tuple[int, int] | None = None,
    seed: Number | None = None,
    config: Mapping[str, Any] | None = None,
    loss: LossFunction | None = None,
    metrics: Mapping[str, Metric] | None = None,
    augment: Augment | None = None,
    optimizer: Optimizer | None = None,
    loggers: Sequence[str | OwnLogger] = (),
    callbacks: Sequence[OwnCallback] = (),
    accept_changed_data: bool = False,
) -> Fitted:
    """Trains a model on data, as `vitswin train` does, and returns it with its history.

    Args:
        model: a name (`model_names`), a module of `create_model`, or None for the model of the
            recipe. The model has as many classes as the data.
        data: (images, labels); an object with a length and items (PyTorch's datasets, Grain's
            MapDataset, a list of examples); an iterable of examples or batches, which is read into
            memory once (at most 8 GB); or the name of a dataset, such as a folder (docs/data.md).
            An example is (image, label) or {"image": image, "label": label}. An image is uint8
            (h, w, c) in [0, 255] or float (h, w, c) in [0, 1], not normalised; (h, w), (c, h, w),
            PIL's images and encoded bytes work too. Images may differ in size: the run resizes
            them. A label is a whole number in [0, k), the name of a class, or, if an image has
            several classes, a row (k,) of 0 and 1.
        test: the test examples, in any of these forms except a name. None: a quarter of each class
            of `data` is held out (`data.holdout`).
        class_names: k names, if `data` is no name of a dataset. None: those of `data`.
        recipe: a name ("digits:vit"), a file or a ConfigDict. None: "folder", or "finetune" with
            `init_from`.
        init_from: weights to start from: a file of any source, a run's workdir or a published name.
        workdir: the folder of weights, metrics, report and checkpoints. The same call resumes the
            run in it. None: a temporary folder, which is removed at the end.
        epochs: passes over the training examples, above 0. For this and the next four, None means
            as in the recipe.
        batch_size: images per step, over all devices.
        lr: the peak of the learning rate.
        img_size: pixels, int or (height, width).
        seed: the seed of all random numbers, 0 or more.
        config: any other keys, {"optim.weight_decay": 0.1}; `vitswin config RECIPE` lists them.
        loss: a function of JAX, loss(logits, targets): float (b, k) each -> the loss of each
            example, float (b,). Mixing and label smoothing have changed the targets before.
        metrics: {name: function(logits, labels) -> one number}, with NumPy arrays (n, k) and int
            (n,), or (n, k) of 0 and 1, of the whole test split. The history has `test/NAME`.
        augment: augment(image, rng): uint8 (h, w, c), numpy.random.Generator -> uint8 (H, W, c).
        optimizer: an optax.GradientTransformation, or a function from the recipe's schedule
            (step -> learning rate) to one. The length, `accum_steps` and `freeze` of
            `config.optim` still apply.
        loggers: names of `config.loggers`, and objects with `log(step, numbers)` and `close()`.
        callbacks: objects with some of the methods of `Callback`, or functions of (step, numbers),
            which are called at each evaluation.
        accept_changed_data: resume although the data changed since the last checkpoint.

    Returns:
        A `Fitted`: `model`, `variables`, `preprocess`, `test_accuracy`, `history`, ...

    Raises:
        UserError: an argument does not fit, such as labels out of range, float images outside
            [0, 1], no examples, or a metric that is no number. One line names it.
        StoppedError: after Ctrl-C, once the workdir has all; KeyboardInterrupt without a workdir.
        Exception: an exception of a function or a callback that you passed.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(64) % 2
    >>> images = rng.integers(0, 99, (64, 8, 8, 1), np.uint8) + 99 * labels[:, None, None, None]
    >>> tiny = vitswin_jax.create_model("vit", img_size=8, patch_size=4, embed_dim=8, depth=1,
    ...                                 num_heads=2)
    >>> fitted = fit(tiny, (images.astype(np.uint8), labels), epochs=1, batch_size=16)
    >>> fitted.class_names, fitted.model.num_classes
    (('0', '1'), 2)
    """
    named = tuple(each for each in loggers if isinstance(each, str))
    objects = tuple(each for each in loggers if not isinstance(each, str))
    given = {"epochs": epochs, "batch-size": batch_size, "lr": lr, "img-size": img_size}
    chosen = make_config(model, recipe=recipe, init_from=init_from)
    dataset = set_data(chosen, data, test=test, class_names=class_names)
    set_short(chosen, given | {"seed": seed})
    set_keys(chosen, config or {})
    if named:
        chosen.loggers = named
    own = Own(
        dataset=dataset,
        loss=loss,
        augment=augment,
        optimizer=optimizer,
        metrics=dict(metrics or {}),
        loggers=objects,
        callbacks=tuple(callbacks),
    )
    called = Callbacks(own.callbacks)
    with _folder(workdir) as folder:
        result = train_and_evaluate(
            chosen, folder, accept_changed_data=accept_changed_data, own=own
        )
        weights = open_pretrained(folder)
        fitted = Fitted(
            model=weights.model,
            variables=weights.variables,
            preprocess=weights.preprocess,
            class_names=weights.class_names,
            history=tuple(row for _, row in read_rows(folder / METRICS).lines),
            result=result,
            workdir=None if workdir is None else folder,
        )
    called.end(fitted)
    return fitted


def make_config(
    model: ModelOrName, *, recipe: str | ConfigDict | None, init_from: str | None
) -> ConfigDict:
    """Returns the recipe's config with the model; raises UserError for what is unknown."""
    if isinstance(recipe, ConfigDict):
        config = ConfigDict(recipe).copy_and_resolve_references().lock()
    elif recipe is not None:
        config = read_recipe(recipe)
    elif init_from is not None:
        config = read_recipe(f"{FROM_WEIGHTS}:{init_from}")
    elif model is None:
        raise UserError("model is None; name a model, or pass recipe or init_from.")
    else:
        config = read_recipe(ANY_MODEL)
    if isinstance(model, str):
        model_kwargs(model)  # an unknown name raises with the nearest
        set_model(config, model)
    elif model is not None:
        set_module(config, model)
    if init_from is not None:
        config.init_from = init_from
    return config


def set_data(
    config: ConfigDict, data: Any, *, test: Any, class_names: Sequence[str] | None
) -> Dataset | None:
    """Sets the data of a config; returns them as a dataset, None where they are the name of one."""
    if isinstance(data, str | os.PathLike):
        if test is not None or class_names is not None:
            raise UserError("test and class_names are for data that are objects; a name has both.")
        config.data.dataset = os.fspath(data)
        return None
    dataset = open_objects(data, test, class_names=class_names)
    config.data.update(dataset=dataset.name, workers=0)  # threads: nothing is to be decoded
    return dataset


@contextlib.contextmanager
def _folder(workdir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Gives the run's folder, or one that is removed at the end."""
    if workdir is not None:
        with working_in(workdir) as folder:
            yield Path(folder).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="vitswin_jax-") as folder:
        try:
            yield Path(folder)
        except StoppedError as error:
            raise KeyboardInterrupt(
                "stopped; nothing is kept, because no workdir was given."
            ) from error
