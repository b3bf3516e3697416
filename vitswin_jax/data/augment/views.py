"""Several views of one image, for self-distillation (multi-crop, arXiv:2006.09882)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment import ops
from vitswin_jax.data.augment.transforms import TrainTransform
from vitswin_jax.data.channels import as_rgb
from vitswin_jax.data.decode import decode_image

WHOLE = 2
"""The views that show the whole image, or a large part of it."""
_RADII = (0.1, 2.0)  # of the blur, in pixels, as in DINO


@dataclass(frozen=True)
class Views:
    """The views of an image: two whole ones and `local_crops` small ones.

    The whole ones are what the other options of `config.augment` make. A small one is a part of the
    image with `local_scale` of its area, resized to `local_size` pixels a side, and augmented in
    the same way. `blur` and `solarize` are probabilities, of the first whole view, the second and
    each small one. Raises UserError that lists every value out of range.
    """

    local_crops: int = 0
    local_size: int | None = None
    local_scale: Sequence[float] = (0.05, 0.4)
    blur: Sequence[float] = (0.0, 0.0, 0.0)
    solarize: Sequence[float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("local_scale", "blur", "solarize"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        faults, scale, size = Faults(), self.local_scale, self.local_size
        crops = self.local_crops
        faults.need(crops >= 0, f"local_crops={crops} must be 0 (none) or more")
        faults.need(
            size is None or size > 0, f"local_size={size} must be the pixels of a side, above 0"
        )
        faults.need(
            size is not None or crops < 1, f"local_crops={crops} needs a local_size, in pixels"
        )
        fits = len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1
        faults.need(fits, f"local_scale={scale} must be (smallest, largest) in (0, 1]")
        for name in ("blur", "solarize"):
            each = getattr(self, name)
            faults.need(
                len(each) == 3 and all(0 <= p <= 1 for p in each),
                f"{name}={each} must be three probabilities, of the two whole views and of each "
                "small one",
            )
        faults.check("augment: ")

    def of(self, transform: TrainTransform) -> MultiCrop:
        """Returns the transform to these views, of that to a whole one.

        Raises UserError for a blur of images of other channels than 1 and 3.
        """
        if len(transform.mean) not in (1, 3) and any((*self.blur, *self.solarize)):
            raise UserError(
                f"augment: blur={self.blur} and solarize={self.solarize} must be 0 for images of "
                f"{len(transform.mean)} channels (model.in_chans): they are for 1 or 3."
            )
        local = None
        if self.local_crops:
            assert self.local_size is not None  # as `__post_init__` has checked
            local = dataclasses.replace(
                transform,
                img_size=(self.local_size,) * 2,
                crop="random_resized",
                scale=self.local_scale,
            )
        return MultiCrop(transform, local, self)

    def check_unused(self) -> None:
        """Raises UserError if an option is set that only self-distillation reads."""
        given = [
            f"augment.{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        if given:
            raise UserError(
                f"{', '.join(given)} is read only with pretrain.method='dino'; leave it out."
            )


@dataclass(frozen=True)
class MultiCrop:
    """The transform from an image to its views."""

    transform: TrainTransform
    local: TrainTransform | None
    views: Views

    @property
    def img_size(self) -> Sequence[int]:
        """The height and width of a whole view."""
        return self.transform.img_size

    @property
    def mean(self) -> Sequence[float]:
        """A number for each channel."""
        return self.transform.mean

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each array of views."""
        channels, size = len(self.mean), self.img_size
        shapes = {"image": (WHOLE, *size, channels)}
        if self.local is not None:
            shapes["local"] = (self.views.local_crops, *self.local.img_size, channels)
        return shapes

    def fitted(self, img_size: Sequence[int]) -> MultiCrop:
        """Returns the same for another size of the whole views."""
        return dataclasses.replace(self, transform=self.transform.fitted(img_size))

    def __call__(
        self, image: bytes | UInt8[np.ndarray, "h w c"], rng: np.random.Generator, *, name: str
    ) -> dict[str, UInt8[np.ndarray, "n H W c"]]:
        """Returns the views, uint8 in [0, 255]; all randomness comes from `rng`.

        An encoded image is decoded once. One that cannot be read raises UserError, which begins
        with `name`.
        """
        if isinstance(image, bytes):
            image = decode_image(image, name=name, channels=len(self.mean))
        whole = [self._view(self.transform, image, rng, which) for which in range(WHOLE)]
        arrays = {"image": np.stack(whole)}
        if self.local is not None:
            crops = range(self.views.local_crops)
            small = [self._view(self.local, image, rng, WHOLE) for _ in crops]
            arrays["local"] = np.stack(small)
        return arrays

    def _view(
        self,
        transform: TrainTransform,
        image: UInt8[np.ndarray, "h w c"],
        rng: np.random.Generator,
        which: int,
    ) -> UInt8[np.ndarray, "H W c"]:
        view = transform(image, rng)
        blur, solarize = self.views.blur[which], self.views.solarize[which]
        if blur and rng.random() < blur:
            radius = rng.uniform(*_RADII)
            view = ops.gaussian_blur(as_rgb(view), radius)[..., : len(self.mean)]
        if solarize and rng.random() < solarize:
            view = ops.solarize(as_rgb(view), 128)[..., : len(self.mean)]
        return np.ascontiguousarray(view)
