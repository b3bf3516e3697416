"""Distillation of features: a student learns the features of a teacher, with labels or without.

A linear layer maps the student's features to the width of the teacher's (FitNets, arXiv:1412.6550);
the layers are trained beside the student and dropped after it. Losses: the cosine, or smooth L1
(arXiv:2205.14141).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from vitswin_jax.core.choices import Faults, wrong_choice
from vitswin_jax.core.types import Params
from vitswin_jax.models.geometry import Outputs
from vitswin_jax.nn.batch import Triple, infer, normalize
from vitswin_jax.nn.layers import unit
from vitswin_jax.nn.params import PROJECTIONS
from vitswin_jax.train.task.distill import Teacher
from vitswin_jax.train.task.mixing import Mixing, mix
from vitswin_jax.train.task.supervised import NO_MIXING, Supervised
from vitswin_jax.train.task.task import Plain

FEATURES = {"token": ("token",), "patches": ("patches",), "both": ("token", "patches")}
"""The features that are learned, by the value of `config.distill.features`."""


def cosine_losses(
    ours: Float[Array, "b *n d"], theirs: Float[Array, "b *n d"], *, beta: float
) -> Float[Array, " b"]:
    """Returns 1 - cosine for each image, the mean over its vectors; it has no beta."""
    del beta
    return _mean_of_rows(1.0 - (unit(ours) * unit(theirs)).sum(-1))


def smooth_l1_losses(
    ours: Float[Array, "b *n d"], theirs: Float[Array, "b *n d"], *, beta: float
) -> Float[Array, " b"]:
    """Returns smooth L1 for each image, the mean over its vectors and channels.

    A difference x counts x² / 2 beta below beta, and |x| - beta / 2 from there on.
    """
    return _mean_of_rows(optax.huber_loss(ours, theirs, delta=beta) / beta)


def _mean_of_rows(x: Float[Array, "b *n"]) -> Float[Array, " b"]:
    return x.reshape(len(x), -1).mean(1)


LOSSES = {"cosine": cosine_losses, "smooth_l1": smooth_l1_losses}


def resize_patches(patches: Float[Array, "b i j d"], grid: tuple[int, ...]) -> Array:
    """Returns a map of patches on another grid, (b, h, w, d): bilinear, antialiased."""
    if patches.shape[1:3] == grid:
        return patches
    shape = (len(patches), *grid, patches.shape[-1])
    return jax.image.resize(patches.astype(jnp.float32), shape, "linear")


class Learned(NamedTuple):
    """The outputs of a student, its features in the widths of the teacher's."""

    logits: Float[Array, "b k"]
    features: dict[str, Array]
    """By the names of `FEATURES`: (b, d) of "token", (b, i, j, d) of "patches"."""


@dataclass(frozen=True)
class FeatureDistillation(Teacher):
    """A student's loss from a teacher's features; the step is given the teacher's parameters.

    "token" is what the teacher's head reads: the class token, or the pooled features. "patches" is
    its last map, resized to the student's grid. The loss is the mean over both, and counts alpha
    beside that of labels. Raises UserError that lists what is wrong.
    """

    features: str
    loss: str
    beta: float
    alpha: float
    widths: tuple[tuple[str, int, int], ...] = ()
    """The name, the student's width and the teacher's of each of the features."""

    def __post_init__(self) -> None:
        faults = Faults(wrong_choice("features", self.features, FEATURES))
        faults += wrong_choice("loss", self.loss, LOSSES)
        faults.need(self.beta > 0, f"beta={self.beta} must be above 0")
        faults.need(0 < self.alpha <= 1, f"alpha={self.alpha} must be above 0 and at most 1")
        faults.check("distill: ")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features that are learned."""
        return FEATURES[self.features]

    def projections(self, key: Key[Array, ""]) -> Params:
        """Returns the parameters of the linear layers, drawn."""
        keys = jax.random.split(key, len(self.widths))
        return {
            PROJECTIONS: {
                name: nn.Dense(theirs).init(key, jnp.zeros((1, ours)))["params"]
                for key, (name, ours, theirs) in zip(keys, self.widths, strict=True)
            }
        }

    def project(self, params: Params, outputs: Outputs) -> Learned:
        """Returns a student's outputs, its features in the widths of the teacher's, float32."""
        layers, found = params[PROJECTIONS], of_outputs(outputs)
        features = {
            name: _linear(layers[name], found[name].astype(jnp.float32)) for name in self.names
        }
        return Learned(outputs.logits, features)

    def losses(
        self, learned: Learned, teacher: Params, images: Float[Array, "b h w c"]
    ) -> Float[Array, " b"]:
        """Returns the loss of each image, of which the student and the teacher see the same."""
        theirs = of_outputs(self.ask(teacher, images, method="outputs"))
        total = jnp.zeros(len(images))
        for name, ours in learned.features.items():
            target = theirs[name].astype(jnp.float32)
            if name == "patches":
                target = resize_patches(target, ours.shape[1:3])
            total += LOSSES[self.loss](ours, target, beta=self.beta)
        return total / len(self.names)


def _linear(params: Params, x: Float[Array, "b *n c"]) -> Float[Array, "b *n d"]:
    projected: Any = nn.Dense(params["kernel"].shape[-1]).apply({"params": params}, x)
    return projected


def of_outputs(outputs: Outputs) -> dict[str, Any]:
    """Returns a model's features by the names of `FEATURES`."""
    return {"token": outputs.features, "patches": outputs.patches}


class Projecting(Plain):
    """A task that trains the projections of its `features` beside the model."""

    features: FeatureDistillation

    def parameters(self, key: Key[Array, ""]) -> Params:
        """Returns the projections."""
        return self.features.projections(key)

    def call(self, key: Key[Array, ""], model: nn.Module) -> dict[str, Any]:
        """Asks for features beside the logits."""
        return {"rngs": {"dropout": key}, "method": "outputs"}

    def forward(
        self, key: Key[Array, ""], model: nn.Module, params: Params, part: dict[str, Array]
    ) -> tuple[Learned, Any]:
        """Applies the model and the projections to the images."""
        outputs, sown = super().forward(key, model, params, part)
        return self.features.project(params, outputs), sown


@dataclass(frozen=True, kw_only=True)
class LabelsAndFeatures(Projecting, Supervised):
    """Classification by labels, and a teacher's features beside them."""

    features: FeatureDistillation

    def losses(
        self, outputs: Learned, part: dict[str, Array], guide: Params | None
    ) -> tuple[Float[Array, " b"], Float[Array, "b k"]]:
        """Returns each example's weighted loss and the logits; `guide` is the teacher."""
        assert guide is not None  # as there are features
        alpha = self.features.alpha
        learned = self.features.losses(outputs, guide, part["image"])
        losses = self.loss(outputs.logits, part["target"]) * (1.0 - alpha) + learned * alpha
        return losses * part["weight"], outputs.logits


@dataclass(frozen=True)
class FeaturesOnly(Projecting):
    """Training by a teacher's features, without labels."""

    features: FeatureDistillation
    mixing: Mixing = NO_MIXING

    def targets(
        self, key: Key[Array, ""], images: Array, batch: dict[str, Array], model: nn.Module
    ) -> dict[str, Array]:
        """Returns the images, mixed; the teacher makes targets of them."""
        mask = batch["mask"]
        images, _ = mix(key, images, jnp.zeros((len(mask), 1)), mask, self.mixing)
        return {"image": images, "mask": mask}

    def losses(
        self, outputs: Learned, part: dict[str, Array], guide: Params | None
    ) -> tuple[Float[Array, " b"], None]:
        """Returns each image's loss; `guide` is the teacher."""
        assert guide is not None  # as there are features
        return self.features.losses(outputs, guide, part["image"]), None

    def metrics(self, logits: None, targets: dict[str, Array]) -> dict[str, Array]:
        """Returns nothing: the loss is all that there is without labels."""
        return {}

    def score(
        self,
        params: Params,
        batch: dict[str, Array],
        *,
        model: nn.Module,
        mean: Triple,
        std: Triple,
    ) -> dict[str, Array]:
        """Returns sums over unmasked rows of a test batch: `loss` and `count`.

        `params` has the parameters of the "student", with its projections, and of the "teacher".
        """
        images, mask = normalize(batch["image"], mean=mean, std=std), batch["mask"]
        outputs = infer(model, params["student"], images, method="outputs")
        learned = self.features.project(params["student"], outputs)
        losses = self.features.losses(learned, params["teacher"], images)
        return {"loss": (losses * mask).sum(), "count": mask.sum()}
