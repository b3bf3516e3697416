"""Distillation: a student learns from labels and from a teacher (DeiT, arXiv:2012.12877)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitswin_jax.core.choices import Faults, wrong_choice
from vitswin_jax.core.types import Params
from vitswin_jax.nn.batch import Triple, infer
from vitswin_jax.nn.layers import pair
from vitswin_jax.train.task.losses import DISTILLATIONS, Loss


@dataclass(frozen=True)
class Teacher:
    """A trained model and the normalisation of images, the teacher's and the student's."""

    teacher: nn.Module
    mean: Triple
    """With `std`: how the teacher's images are normalised."""
    std: Triple
    given_mean: Triple
    """With `given_std`: how the student's images were normalised."""
    given_std: Triple

    def shown(self, images: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
        """Returns a student's images as the teacher takes them.

        They are normalised again, by the teacher's own numbers. If the teacher takes another image
        size, an antialiased cubic resizes them.
        """
        our_mean, our_std, their_mean, their_std = (
            jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1)
            for x in (self.given_mean, self.given_std, self.mean, self.std)
        )
        images = (images * our_std + our_mean - their_mean) / their_std
        size = pair(self.teacher.img_size)
        if images.shape[1:3] != size:
            images = jax.image.resize(images, (len(images), *size, images.shape[-1]), "cubic")
        return images

    def ask(
        self, params: Params, images: Float[Array, "b h w c"], *, method: str | None = None
    ) -> Any:
        """Returns the teacher's output for a student's images, as a constant."""
        return jax.lax.stop_gradient(infer(self.teacher, params, self.shown(images), method=method))


@dataclass(frozen=True)
class Distillation(Teacher):
    """A student's loss from a teacher's logits; the step is given the teacher's parameters.

    The loss is (1 - alpha) of the labels' and alpha of `kind`, "soft" (with `temperature`) or
    "hard". A student with a distillation token learns the labels by its class token's head and the
    teacher by the other's; one without learns both by its logits. Raises UserError that lists what
    is wrong.
    """

    kind: str
    alpha: float
    temperature: float

    def __post_init__(self) -> None:
        faults = Faults(wrong_choice("kind", self.kind, DISTILLATIONS))
        faults.need(0 <= self.alpha <= 1, f"alpha={self.alpha} must be in [0, 1]")
        faults.need(self.temperature > 0, f"temperature={self.temperature} must be above 0")
        faults.check("distill: ")

    def teacher_logits(
        self, params: Params, images: Float[Array, "b h w c"]
    ) -> Float[Array, "b k"]:
        """Returns the teacher's logits for the student's images, augmented and mixed."""
        return self.ask(params, images)

    def loss(
        self,
        heads: Float[Array, "b heads k"],
        targets: Float[Array, "b k"],
        teacher: Float[Array, "b k"],
        *,
        base: Loss,
    ) -> Float[Array, " b"]:
        """Returns each example's loss; `heads` are one or two rows of logits."""
        learned = DISTILLATIONS[self.kind](heads[:, -1], teacher, temperature=self.temperature)
        return base(heads[:, 0], targets) * (1.0 - self.alpha) + learned * self.alpha
