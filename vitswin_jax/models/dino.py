"""Self-distillation (DINO, arXiv:2104.14294; iBOT, arXiv:2111.07832; DINOv2, arXiv:2304.07193).

A student learns from several views of an image to predict what its own average, the teacher, says
of the others. Here are the model, which both are, and the settings of the method; the loss is in
`train.task.self_distilled`.

Axes: b views, h w image, i j grid of what is hidden or not, m hidden places, d features, k outputs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vitswin_jax.core.choices import Faults, near_multiples, wrong_choice
from vitswin_jax.models.masked import enlarge
from vitswin_jax.models.unlabelled import UnlabelledModel
from vitswin_jax.nn.layers import unit
from vitswin_jax.nn.relative import table_init
from vitswin_jax.nn.sides import Size

CENTERINGS = ("mean", "sinkhorn")


class Projected(NamedTuple):
    """A model's view of images, all float32."""

    features: Float[Array, "b d"]
    """Of the encoder: what a head would read."""
    logits: Float[Array, "b k"]
    """Of the projection head, cosines in [-1, 1]."""
    patches: Float[Array, "b m k"] | None = None
    """The same of each of the patches that were asked for."""


class Prototypes(nn.Module):
    """A linear layer without bias, each of whose outputs has weights of length 1."""

    count: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b k"]:
        """Returns the product of vectors with each prototype, float32."""
        shape = (x.shape[-1], self.count)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape, jnp.float32)
        kernel = unit(kernel, axis=0).astype(self.dtype)
        return jnp.matmul(x.astype(self.dtype), kernel, preferred_element_type=jnp.float32)


class Projection(nn.Module):
    """The head: three layers to a bottleneck of length 1, and its cosines with prototypes."""

    hidden_dim: int
    bottleneck_dim: int
    out_dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b k"]:
        """Returns float32 cosines of features."""
        for i in range(2):
            x = nn.Dense(self.hidden_dim, dtype=self.dtype, name=f"hidden_{i}")(x)
            x = nn.gelu(x, approximate=False)
        x = nn.Dense(self.bottleneck_dim, dtype=self.dtype, name="bottleneck")(x)
        return Prototypes(self.out_dim, self.dtype, name="prototypes")(unit(x))


class DINO(UnlabelledModel):
    """Self-distillation around a ViT or a Swin: the encoder, its projection head, the settings.

    The teacher is the average of the student with `momentum`, which rises to 1 as a cosine. Its
    outputs at `teacher_temp`, which begins at `warmup_teacher_temp` and rises in equal steps over
    the first epochs, are the targets; `centering` keeps them apart: "mean" subtracts a running
    mean of its logits (`center_momentum`), "sinkhorn" balances those of each batch (DINOv2).

    With a `patch_weight` above 0 the loss has a second term (iBOT): of the views `mask_prob` have
    the share `mask_ratio` of their patches hidden, and the student predicts what the teacher says
    of these, by the same head or, without `shared_head`, by one of its own. `koleo_weight` spreads
    features over the sphere (DINOv2, KoLeo).
    """

    out_dim: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    momentum: float = 0.996
    student_temp: float = 0.1
    teacher_temp: float = 0.04
    warmup_teacher_temp: float = 0.04
    warmup_teacher_temp_epochs: float = 0.0
    freeze_last_layer_epochs: float = 1.0
    centering: str = "mean"
    center_momentum: float = 0.9
    patch_weight: float = 0.0
    shared_head: bool = True
    mask_ratio: float = 0.3
    mask_prob: float = 0.5
    koleo_weight: float = 0.0

    @property
    def units(self) -> Size:
        """The grid of what is hidden or not, (height, width): the encoder's last map."""
        (h, w), (p, q) = self.img_size, self.stride
        return h // p, w // q

    @property
    def hidden(self) -> int:
        """The number of hidden units of a view that has any."""
        return math.ceil(self.units[0] * self.units[1] * self.mask_ratio)

    def check(self) -> None:
        """Raises UserError that lists every field that does not fit the others, or the encoder."""
        faults = self.check_encoder(hides=self.patch_weight > 0)
        for key in ("out_dim", "hidden_dim", "bottleneck_dim"):
            value = getattr(self, key)
            faults.need(value >= 1, f"{key}={value} must be 1 or more")
        for key in ("student_temp", "teacher_temp", "warmup_teacher_temp"):
            value = getattr(self, key)
            faults.need(value > 0, f"{key}={value} must be above 0")
        for key in ("momentum", "center_momentum"):
            value = getattr(self, key)
            faults.need(0 <= value < 1, f"{key}={value} must be in [0, 1)")
        for key in (
            "warmup_teacher_temp_epochs",
            "freeze_last_layer_epochs",
            "patch_weight",
            "koleo_weight",
        ):
            value = getattr(self, key)
            faults.need(value >= 0, f"{key}={value} must be 0 or more")
        faults += wrong_choice("centering", self.centering, CENTERINGS)
        faults += self._wrong_masks()
        faults.check("dino: ")

    def _wrong_masks(self) -> Faults:
        faults = Faults()
        (h, w), (p, q) = self.img_size, self.stride
        if self.patch_weight > 0 and (h % p or w % q):
            near = near_multiples((h, w), (p, q))
            faults.append(
                f"img_size={h}x{w} is no multiple of the stride {p}x{q}, as {near} are, and "
                f"patch_weight={self.patch_weight} hides whole cells"
            )
        for key in ("mask_ratio", "mask_prob"):
            value = getattr(self, key)
            faults.need(0 < value <= 1, f"{key}={value} must be above 0 and at most 1")
        return faults

    def setup(self) -> None:
        """Creates what is not the encoder's; runs `check` first."""
        self.check()
        sizes = (self.hidden_dim, self.bottleneck_dim, self.out_dim, self.dtype)
        self.projection = Projection(*sizes)
        if self.patch_weight > 0:
            shape = (1, 1, self.encoder.embed_dim)
            self.mask_token = self.param("mask_token", table_init, shape, jnp.float32)
            if not self.shared_head:
                self.patch_projection = Projection(*sizes)

    def __call__(
        self,
        images: Float[Array, "b h w channels"],
        hidden: Bool[Array, "b i j"] | None = None,
        places: Int[Array, "b m"] | None = None,
        *,
        train: bool = False,
    ) -> Projected:
        """Projects views, normalised images.

        The cells that are `hidden` are replaced by the mask token. `places` are the cells, numbered
        row-major, whose own projections are asked for. Both need a `patch_weight` above 0.
        """
        if self.patch_weight == 0 or not (self.is_initializing() or places is not None):
            features = self.encoder.features(images, train=train)
            return Projected(features, self.projection(features))
        x = self.encoder.embed_patches(images)
        if hidden is not None:
            cell = (x.shape[1] // hidden.shape[1], x.shape[2] // hidden.shape[2])
            x = jnp.where(
                enlarge(hidden, cell)[..., None], self.mask_token[None].astype(x.dtype), x
            )
        features, maps = self.encoder.encode(x, train=train)
        tokens = maps.reshape(len(maps), -1, maps.shape[-1])
        if places is not None:
            tokens = jnp.take_along_axis(tokens, places[..., None], axis=1)
        head = self.projection if self.shared_head else self.patch_projection
        return Projected(features, self.projection(features), head(tokens))
