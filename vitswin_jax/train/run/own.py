"""Objects that a Python user passes to a run, in place of what its config names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.data.sources.splits import Dataset
from vitswin_jax.train.keep.callbacks import Callback
from vitswin_jax.train.keep.loggers import Logger
from vitswin_jax.train.optim.groups import Groups
from vitswin_jax.train.optim.optimizers import own_tx
from vitswin_jax.train.run.unlabelled import Unlabelled
from vitswin_jax.train.task.losses import Loss

if TYPE_CHECKING:
    LossFunction = Callable[[jax.Array, jax.Array], jax.Array]
    Metric = Callable[[np.ndarray, np.ndarray], Any]
    Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]
    OwnLogger = Logger
    OwnCallback = Callback | Callable[[int, Mapping[str, float]], Any]
else:  # anything may be passed, and what cannot be used raises UserError
    LossFunction = Metric = Augment = OwnLogger = OwnCallback = Any
Optimizer = Any
"""An optax.GradientTransformation, or a function from the run's schedule to one."""


@dataclass(frozen=True)
class Own:
    """The objects that a user passes; None or nothing: as the config has it."""

    dataset: Dataset | None = None
    loss: LossFunction | None = None
    augment: Augment | None = None
    optimizer: Optimizer | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    loggers: Sequence[OwnLogger] = ()
    callbacks: Sequence[OwnCallback] = ()

    def __post_init__(self) -> None:
        faults = Faults()
        functions: dict[str, Any] = {"loss": self.loss, "augment": self.augment}
        functions |= {f"metrics[{name!r}]": metric for name, metric in self.metrics.items()}
        for name, each in functions.items():
            instead = f"; the recipe's is set by config={{'{name}.name': {each!r}}}"
            faults.need(
                each is None or callable(each),
                f"{name}: is {type(each).__name__}, and must be a function"
                f"{instead if isinstance(each, str) and name == 'loss' else ''}",
            )
        for name in ("loss", "accuracy"):
            faults.need(
                name not in self.metrics,
                f"metrics[{name!r}] has a name that the run uses itself; choose another",
            )
        for own in self.loggers:
            faults.need(
                isinstance(own, Logger),
                f"loggers: {type(own).__name__} has no log(step, numbers) and close()",
            )
        faults.check()

    def check_labels(self, unlabelled: Unlabelled | None) -> None:
        """Raises UserError if a run without labels would leave something unused."""
        if unlabelled is not None and (self.loss is not None or self.metrics):
            raise UserError(
                f"{unlabelled.why} reads no labels, so it takes no loss and no metrics."
            )

    def scores(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Returns the metrics of a test split, by the names of metrics.jsonl.

        Raises UserError for a metric that is not one number.
        """
        return {
            f"test/{name}": _one_number(f"metrics[{name!r}]", metric(logits, labels))
            for name, metric in self.metrics.items()
        }


NONE = Own()


def own_loss(function: LossFunction, classes: int) -> Loss:
    """Returns a user's loss; raises UserError unless it returns one number for each example."""
    shape = jax.ShapeDtypeStruct((2, classes), jnp.float32)
    given = jax.eval_shape(function, shape, shape)
    if getattr(given, "shape", None) != (2,) or not jnp.issubdtype(given.dtype, jnp.floating):
        shown = f"{given.dtype} {given.shape}" if hasattr(given, "shape") else type(given).__name__
        raise UserError(
            f"loss: returns {shown} for logits and targets (2, {classes}); it must return float "
            "(2,), the loss of each example."
        )
    return Loss(getattr(function, "__name__", type(function).__name__), function)


def own_optimizer(
    given: Optimizer, schedule: optax.Schedule, groups: Groups
) -> tuple[optax.Schedule | None, optax.GradientTransformation]:
    """Returns a user's optimizer and the schedule of its rate, None where only the user knows it.

    `given` is one of optax's, or a function from the run's schedule to one. Raises UserError for
    anything else.
    """
    known = None
    if not _is_optimizer(given) and callable(given):
        given, known = given(schedule), schedule
    if not _is_optimizer(given):
        raise UserError(
            f"optimizer: is {type(given).__name__}; it must be an optax.GradientTransformation, or "
            "a function from the run's schedule to one."
        )
    return known, own_tx(given, groups)


def _is_optimizer(given: Any) -> bool:
    return callable(getattr(given, "init", None)) and callable(getattr(given, "update", None))


@dataclass(frozen=True)
class OwnTransform:
    """The transform of training that augments by a user's function.

    The function is given an image, uint8 (h, w, c), as it is stored, and a generator that is seeded
    by (seed, epoch, image). Evaluation's preprocessing resizes what it returns if it has not the
    model's size.
    """

    function: Augment
    preprocess: Preprocess

    @property
    def img_size(self) -> Sequence[int]:
        """The model's image size."""
        return self.preprocess.img_size

    @property
    def mean(self) -> Sequence[float]:
        """A number for each channel of the model."""
        return self.preprocess.mean

    def fitted(self, img_size: Sequence[int]) -> OwnTransform:
        """Returns the same for another image size."""
        changed = dataclasses.replace(self.preprocess, img_size=tuple(img_size))
        return dataclasses.replace(self, preprocess=changed)

    def __call__(
        self, image: bytes | np.ndarray, rng: np.random.Generator, *, name: str = "image"
    ) -> np.ndarray:
        """Returns the augmented image; raises UserError for what is no image of its channels."""
        given = np.array(self.preprocess.decode(image, name=name))  # which it may write into
        result = np.asarray(self.function(given, rng))
        if result.dtype != np.uint8 or result.ndim != 3 or result.shape[2] != given.shape[2]:
            raise UserError(
                f"{name}: augment returns {result.dtype} {result.shape} for uint8 {given.shape}; "
                f"it must return uint8 (height, width, {given.shape[2]})."
            )
        if result.shape[:2] == tuple(self.img_size):
            return np.ascontiguousarray(result)
        return self.preprocess.image(result)


def _one_number(name: str, value: Any) -> float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "buif":
        raise UserError(f"{name}: returns {array.dtype} {array.shape}; it must return one number.")
    return float(array.reshape(()))
