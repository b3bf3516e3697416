"""Grad-CAM (arXiv:1610.02391): the places of an image that are evidence for a class.

Axes: b images, i j the last map, n tokens, c channels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitswin_jax.core.types import Params, UserError
from vitswin_jax.models.geometry import geometry_of
from vitswin_jax.nn.batch import infer
from vitswin_jax.nn.scan import unstack_blocks


def grad_cam(
    model: nn.Module,
    variables: Mapping[str, Params],
    images: Float[np.ndarray, "b h w c"],
    classes: Int[np.ndarray, " b"],
) -> Float[np.ndarray, "b i j"]:
    """Returns ReLU(Σ_c α_c A_c) of each image's class, α_c a channel's mean gradient (eqs. 1, 2).

    A is the input of the module that the model's geometry calls `evidence`: for a Swin, the output
    of the last stage; for a ViT, the patches' tokens before the last block, because a head that
    reads the class token sees no other token after it. Variables may be in loop or scan layout.
    Raises UserError for a model without a head, or without such a class.
    """
    if not model.num_classes:
        raise UserError("the model has no head, so there is no class to explain.")
    if wrong := sorted({int(i) for i in classes if not 0 <= i < model.num_classes}):
        raise UserError(
            f"class {', '.join(map(str, wrong))}: the model's classes are 0 to "
            f"{model.num_classes - 1}."
        )
    model = model.clone(scan=False, remat="none")
    variables = {"params": unstack_blocks(variables["params"])}
    features, gradient = jax.device_get(_features_and_gradient(model, variables, images, classes))
    last = geometry_of(model, images.shape[1:3]).blocks[-1]
    features, gradient = (
        x.reshape(len(x), last.num_tokens, -1)[:, last.prefix :] for x in (features, gradient)
    )
    heat = np.einsum("bnc,bc->bn", features, gradient.mean(1))
    return np.maximum(heat, 0).reshape(len(heat), *last.size)


@functools.partial(jax.jit, static_argnums=0)
def _features_and_gradient(
    model: nn.Module, variables: Mapping[str, Params], images: Array, classes: Array
) -> tuple[Array, Array]:
    """Returns the features that are explained, and the gradient of the classes' logits in them."""

    def logit(added: Array | float) -> tuple[Array, Array]:
        logits, features = _apply(model, variables, images, added)
        # An image's logit does not depend on the others: the sum's gradient is each one's own.
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), features

    shape = jax.eval_shape(logit, 0.0)[1]
    gradient, features = jax.grad(logit, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    return features.astype(jnp.float32), gradient.astype(jnp.float32)


def _apply(
    model: nn.Module, variables: Mapping[str, Params], images: Array, added: Array | float
) -> tuple[Array, Array]:
    """Applies a model with something added to the features; returns its logits and the features."""
    seen, place = [], geometry_of(model).evidence

    def tap(call, args, kwargs, context):
        if context.method_name != "__call__" or context.module.path != (place,):
            return call(*args, **kwargs)
        seen.append(args[0])
        return call(args[0] + added, *args[1:], **kwargs)

    with nn.intercept_methods(tap):
        logits = infer(model, variables["params"], images)
    return logits, seen[0]
