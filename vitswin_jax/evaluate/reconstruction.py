"""Evaluation of a masked model: its loss on images whose masks never change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt8

from vitswin_jax.core.types import Params
from vitswin_jax.evaluate.step import Metrics
from vitswin_jax.models.masked import MaskedModel, Reconstruction
from vitswin_jax.nn.batch import Triple, infer, normalize

_MASK_SEED = 0


def reconstruct(
    params: Params, batch: dict[str, Array], *, model: MaskedModel, mean: Triple, std: Triple
) -> Reconstruction:
    """Fills in a batch; an image always gets the same mask, whatever else the batch contains."""
    images = normalize(batch["image"], mean=mean, std=std)
    masks = jax.vmap(lambda key: model.draw(key, 1)[0])(_image_keys(batch["image"]))
    return infer(model, params, images, masks)


def reconstruction_step(
    params: Params, batch: dict[str, Array], *, model: MaskedModel, mean: Triple, std: Triple
) -> Metrics:
    """Returns sums over unmasked rows: `loss` and `count`."""
    out, mask = reconstruct(params, batch, model=model, mean=mean, std=std), batch["mask"]
    return {"loss": (out.loss * mask).sum(), "count": mask.sum()}


def _image_keys(images: UInt8[Array, "b h w c"]) -> Key[Array, " b"]:
    """Returns a random key of each image, a function of its pixels."""
    key = jax.random.key(_MASK_SEED)
    factors = jax.random.bits(key, (1, *images.shape[1:]), jnp.uint32)
    sums = (images * factors).sum((1, 2, 3), dtype=jnp.uint32)  # modulo 2**32
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(sums)
