"""Self-distillation: a student predicts what its average says of other views (`models.dino`).

Axes: b images, v views of an image, t the teacher's views, m hidden patches, k outputs, d features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.traverse_util import path_aware_map
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from vitswin_jax.core.types import Params
from vitswin_jax.models.dino import DINO, Projected
from vitswin_jax.models.masked import draw_masks
from vitswin_jax.nn.batch import infer, mean_where
from vitswin_jax.nn.layers import unit
from vitswin_jax.train.task.task import apply_in_training

_ROUNDS = 3  # of Sinkhorn and Knopp, as in DINOv2
_NEAR = 1e-8  # a distance: that of equal features in KoLeo, as in DINOv2


class Hiding(NamedTuple):
    """The patches that are hidden of views."""

    cells: Bool[Array, "n i j"]
    places: Int[Array, "n m"]
    """The hidden cells, numbered row-major; of a view without any, those that would be."""
    active: Float[Array, " n"]
    """1 for a view with hidden cells, else 0."""


class Seen(NamedTuple):
    """The student's outputs for the views of images."""

    logits: Float[Array, "b v k"]
    """Those of the two whole views come first."""
    features: Float[Array, "b t d"]
    patches: Float[Array, "b t m k"] | None
    hiding: Hiding | None


def sinkhorn(
    logits: Float[Array, "*n k"], temperature: Array | float, weights: Float[Array, "*n"]
) -> Float[Array, "*n k"]:
    """Returns targets of which each output has an equal share of all rows (DINOv2, appendix A).

    Rows whose weight is 0 count for nothing, and are 0. The others each sum to 1.
    """
    scaled = logits / temperature
    q = jnp.exp(scaled - scaled.max()) * weights[..., None]
    rows, outputs = jnp.maximum(weights.sum(), 1.0), logits.shape[-1]
    axes = tuple(range(logits.ndim - 1))
    q = _share(q, q.sum())
    for _ in range(_ROUNDS):
        q = _share(q, q.sum(axes, keepdims=True)) / outputs
        q = _share(q, q.sum(-1, keepdims=True)) / rows
    return q * rows


def _share(q: Array, total: Array) -> Array:
    return q / jnp.where(total > 0, total, 1.0)


def view_losses(
    targets: Float[Array, "b t k"], log_probs: Float[Array, "b v k"]
) -> Float[Array, " b"]:
    """Returns each image's mean cross-entropy over the pairs of a target and another view."""
    pairs = -jnp.einsum("btk,bvk->btv", targets, log_probs)
    others = 1.0 - jnp.eye(pairs.shape[1], pairs.shape[2])[None]
    return (pairs * others).sum((1, 2)) / others.sum()


def patch_losses(
    targets: Float[Array, "b t m k"],
    log_probs: Float[Array, "b t m k"],
    active: Float[Array, "b t"],
) -> Float[Array, " b"]:
    """Returns each image's mean cross-entropy over the hidden patches of each view, 0 of none."""
    losses = -(targets * log_probs).sum(-1).mean(-1)
    return (losses * active).mean(1)


def koleo_losses(features: Float[Array, "b t d"], mask: Float[Array, " b"]) -> Float[Array, " b"]:
    """Returns -log of the distance from each image's features to the nearest other image's.

    The features have length 1, and are compared within each of the views, whose mean it is; images
    that are not in the `mask` are nobody's neighbours (KoLeo, arXiv:1806.03198).
    """
    x = rearrange(unit(features), "b t d -> t b d")
    dots = lax.stop_gradient(jnp.einsum("tid,tjd->tij", x, x))
    usable = (mask > 0)[None, None, :] & ~jnp.eye(x.shape[1], dtype=bool)[None]
    nearest = jnp.where(usable, dots, -2.0).argmax(-1)
    other = jnp.take_along_axis(x, nearest[..., None], axis=1)
    distance = jnp.sqrt(((x - other) ** 2).sum(-1) + _NEAR**2)
    alone = usable.sum(-1) == 0
    return jnp.where(alone, 0.0, -jnp.log(distance + _NEAR)).mean(0)


@dataclass(frozen=True)
class SelfDistilled:
    """Training of a `DINO`, whose average in the state is the teacher.

    A batch has `image` (b, 2, h, w, c), the whole views, and may have `local` (b, n, h', w', c),
    small ones, which the student alone sees.
    """

    model: DINO
    local: nn.Module | None = None
    """The model for small views."""
    fit: Callable[[Params], Params] | None = None
    """From the model's parameters to those for small views; None: they are the same."""
    warmup_steps: int = 0
    """The steps over which the teacher's temperature rises."""
    frozen_steps: int = 0
    """The first steps, in which the head's last layer does not train."""

    def begin(self) -> dict[str, Array] | None:
        """Returns the centres of the teacher's logits, where a mean is subtracted."""
        if self.model.centering != "mean":
            return None
        zeros = jnp.zeros(self.model.out_dim, jnp.float32)
        return {"center": zeros} | ({"patch_center": zeros} if self._hides else {})

    def parameters(self, key: Key[Array, ""]) -> Params:
        """Returns nothing beside the model's parameters, which have the head."""
        return {}

    @property
    def _hides(self) -> bool:
        return self.model.patch_weight > 0

    def guide(
        self, teacher: Params | None, average: Params | None, *, kept: Any, step: Int[Array, ""]
    ) -> dict[str, Any]:
        """Returns the teacher, the average of the student; its centres and its temperature."""
        return {"params": average, "kept": kept, "temperature": self.temperature(step)}

    def temperature(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Returns the teacher's temperature in a step."""
        first, last = self.model.warmup_teacher_temp, self.model.teacher_temp
        done = 1.0 if not self.warmup_steps else jnp.minimum(step / self.warmup_steps, 1.0)
        return jnp.asarray(first + (last - first) * done, jnp.float32)

    def targets(
        self, key: Key[Array, ""], images: Array, batch: dict[str, Array], model: nn.Module
    ) -> dict[str, Array]:
        """Returns the views; the teacher makes targets of them."""
        local = {} if self.local is None else {"local": batch["local"]}
        return {"image": images, "mask": batch["mask"], **local}

    def hide(self, key: Key[Array, ""], views: int) -> Hiding:
        """Draws the cells that are hidden of views; some views have none."""
        which_key, mask_key = jax.random.split(key)
        hidden = self.model.hidden
        cells = draw_masks(mask_key, views, grid=self.model.units, hidden=hidden)
        places = (~cells).reshape(views, -1).argsort(-1, stable=True)[:, :hidden]
        active = jax.random.bernoulli(which_key, self.model.mask_prob, (views,))
        return Hiding(cells & active[:, None, None], places, active.astype(jnp.float32))

    def forward(
        self, key: Key[Array, ""], model: nn.Module, params: Params, part: dict[str, Array]
    ) -> tuple[Seen, Any]:
        """Applies the student to all views."""
        drop_key, local_key, mask_key = jax.random.split(key, 3)
        b, whole = len(part["mask"]), _each(part["image"])
        hiding = self.hide(mask_key, len(whole)) if self._hides else None
        inputs = () if hiding is None else (hiding.cells, hiding.places)
        seen, sown = apply_in_training(model, params, whole, *inputs, rngs={"dropout": drop_key})
        views = [rearrange(seen.logits, "(b v) k -> b v k", b=b)]
        if self.local is not None:
            fitted = params if self.fit is None else self.fit(params)
            small, more = apply_in_training(
                self.local, fitted, _each(part["local"]), rngs={"dropout": local_key}
            )
            views.append(rearrange(small.logits, "(b v) k -> b v k", b=b))
            sown = (sown, more)
        features = rearrange(seen.features, "(b t) d -> b t d", b=b)
        patches = seen.patches
        if patches is not None:
            patches = rearrange(patches, "(b t) m k -> b t m k", b=b)
        return Seen(jnp.concatenate(views, 1), features, patches, hiding), sown

    def losses(
        self, outputs: Seen, part: dict[str, Array], guide: dict[str, Any]
    ) -> tuple[Float[Array, " b"], dict[str, Array]]:
        """Returns each image's loss, and rows of what the teacher says.

        They are the targets, of both views on average, their entropy, and the logits that the
        centres follow.
        """
        model, mask = self.model, part["mask"]
        b, hiding = len(mask), outputs.hiding
        places = None if hiding is None else hiding.places
        theirs: Projected = infer(model, guide["params"], _each(part["image"]), places=places)
        logits = lax.stop_gradient(rearrange(theirs.logits, "(b t) k -> b t k", b=b))
        weights = jnp.broadcast_to(mask[:, None], logits.shape[:2])
        targets = self._sharpened(logits, weights, guide, "center")
        losses = view_losses(targets, jax.nn.log_softmax(outputs.logits / model.student_temp))
        rows = {"target": targets.mean(1), "entropy": _entropy(targets).mean(1)}
        if model.centering == "mean":
            rows["center"] = logits.mean(1)
        if hiding is not None and outputs.patches is not None:
            active = rearrange(hiding.active, "(b t) -> b t", b=b)
            assert theirs.patches is not None  # as there are places
            patches = rearrange(theirs.patches, "(b t) m k -> b t m k", b=b)
            patches = lax.stop_gradient(patches)
            seen = jnp.broadcast_to((active * mask[:, None])[..., None], patches.shape[:3])
            targets = self._sharpened(patches, seen, guide, "patch_center")
            log_probs = jax.nn.log_softmax(outputs.patches / model.student_temp)
            losses += model.patch_weight * patch_losses(targets, log_probs, active)
            if model.centering == "mean":
                rows["patch_center"] = (patches * seen[..., None]).sum((1, 2))
                rows["patches"] = seen.sum((1, 2))
        if model.koleo_weight:
            losses += model.koleo_weight * koleo_losses(outputs.features, mask)
        return losses, rows

    def _sharpened(
        self, logits: Array, weights: Array, guide: dict[str, Any], center: str
    ) -> Float[Array, "*n k"]:
        """Returns the targets that logits of the teacher's make."""
        if self.model.centering == "sinkhorn":
            return sinkhorn(logits, guide["temperature"], weights)
        mean = guide["kept"][center].reshape((1,) * (logits.ndim - 1) + (-1,))
        return jax.nn.softmax((logits - mean) / guide["temperature"])

    def metrics(self, logits: dict[str, Array], targets: dict[str, Array]) -> dict[str, Array]:
        """Returns entropies, in nats, by which a collapse shows.

        `target_entropy` is that of a target: log(out_dim) if the teacher says the same of all
        outputs. `spread_entropy` is that of their mean: 0 if it names one output for all images.
        """
        mask = targets["mask"]
        return {
            "target_entropy": mean_where(logits["entropy"], mask),
            "spread_entropy": _entropy(mean_where(logits["target"], mask)),
        }

    def train_only(self, updates: Params, step: Int[Array, ""]) -> Params:
        """Returns the updates, zeros for the head's last layer in the first steps."""
        if not self.frozen_steps:
            return updates

        def update(path: tuple[Any, ...], leaf: Array) -> Array:
            return jnp.where(step < self.frozen_steps, 0.0, leaf) if "prototypes" in path else leaf

        return path_aware_map(update, updates)

    def keep(
        self, kept: dict[str, Array] | None, logits: dict[str, Array], targets: dict[str, Array]
    ) -> dict[str, Array] | None:
        """Returns the centres, moved towards the mean of the batch's logits."""
        if kept is None:
            return None
        mask, stay = targets["mask"], self.model.center_momentum
        sums = {"center": (logits["center"] * mask[:, None]).sum(0)}
        counts = {"center": mask.sum()}
        if "patch_center" in kept:
            sums["patch_center"] = logits["patch_center"].sum(0)
            counts["patch_center"] = logits["patches"].sum()
        return {
            name: jnp.where(
                counts[name] > 0,
                old * stay + sums[name] / jnp.maximum(counts[name], 1.0) * (1.0 - stay),
                old,
            )
            for name, old in kept.items()
        }


def _each(views: Float[Array, "b v h w c"]) -> Float[Array, "n h w c"]:
    return rearrange(views, "b v h w c -> (b v) h w c")


def _entropy(probs: Float[Array, "*n k"]) -> Float[Array, "*n"]:
    return -jax.scipy.special.xlogy(probs, probs).sum(-1)
