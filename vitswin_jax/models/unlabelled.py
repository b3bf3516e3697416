"""Models around an encoder, any model here, that learns from images without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import Params
from vitswin_jax.models.geometry import geometry_of
from vitswin_jax.nn.layers import pair
from vitswin_jax.nn.sides import Size


class UnlabelledModel(nn.Module):
    """The methods' base: an `encoder`, whose parameters are those of the model without a head."""

    encoder: nn.Module

    @property
    def img_size(self) -> Size:
        """The images, (height, width)."""
        return pair(self.encoder.img_size)

    @property
    def in_chans(self) -> int:
        """The images' channels."""
        return self.encoder.in_chans

    @property
    def stride(self) -> Size:
        """The pixels per cell of the encoder's last map, (height, width)."""
        return geometry_of(self.encoder).blocks[-1].stride

    @property
    def scan(self) -> bool:
        """Whether the encoder's blocks are stacked."""
        return self.encoder.scan

    @property
    def dtype(self) -> DTypeLike:
        """The dtype of the computation; parameters, predictions and losses are float32."""
        return self.encoder.dtype

    def check_encoder(self, *, hides: bool = True) -> Faults:
        """Returns the faults of the encoder, for a method that `hides` patches or sees them all."""
        encoder, geometry, faults = self.encoder, geometry_of(self.encoder), Faults()
        if hides and geometry.filters is None:
            faults.append("a ResNet in front of the patches would see what is hidden")
        if hides and (not geometry.normed or geometry.pooling.attention is not None):
            faults.append("the encoder needs a norm after its blocks: no fc_norm, no map pooling")
        if encoder.num_classes:
            faults.append(f"the encoder has num_classes={encoder.num_classes}, which must be 0")
        return faults

    def features(
        self, images: Float[Array, "b h w channels"], *, train: bool = False
    ) -> Float[Array, "b d"]:
        """Returns the encoder's features of whole images."""
        return self.encoder.features(images, train=train)


def with_encoder(model: nn.Module, **fields: Any) -> nn.Module:
    """Returns a model with fields changed; those of its encoder, if the model pre-trains one."""
    if isinstance(model, UnlabelledModel):
        return model.clone(encoder=model.encoder.clone(**fields))
    return model.clone(**fields)


def encoder_of(model: nn.Module, params: Params) -> tuple[nn.Module, Params]:
    """Returns the model that gives features, and its parameters: an encoder, or the model."""
    if isinstance(model, UnlabelledModel):
        return model.encoder, params["encoder"]
    return model, params


def divide_encoder(named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides what has the flat names of such a model's parameters: its encoder's, the rest."""
    prefix = "encoder/"
    encoder = {n.removeprefix(prefix): x for n, x in named.items() if n.startswith(prefix)}
    return encoder, {n: x for n, x in named.items() if not n.startswith(prefix)}
