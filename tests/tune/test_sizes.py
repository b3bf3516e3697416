"""Sizes: that they fit the images, and cost more one after the other."""

import io

import numpy as np
import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.models.registry import create_model
from vitswin_jax.plan.cost import describe
from vitswin_jax.tune import sizes
from vitswin_jax.tune.sizes import Images


class Pictures:
    """A source of encoded images; an image that is None is damaged."""

    name = "pictures"

    def __init__(self, *images):
        self._images = images

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        data = io.BytesIO()
        if self._images[index] is not None:
            Image.fromarray(self._images[index]).save(data, "PNG")
        return {"image": data.getvalue(), "label": 0}

    def describe(self, index):
        return str(index)

    def label(self, index):
        return 0

    def key(self, index):
        return str(index)

    def facts(self, indices):
        return {}

    class_names, multi_label = ("thing",), False


def test_images_are_looked_at():
    grey = [np.full((20, 30), 7, np.uint8), np.full((40, 24), 9, np.uint8)]
    red = np.zeros((50, 60, 3), np.uint8)
    red[..., 0] = 255
    assert sizes.look_at(Pictures(*grey)) == Images(2, 22, True)
    assert sizes.look_at(Pictures(*grey, None, red)) == Images(4, 24, False)
    with pytest.raises(UserError, match="none of"):
        sizes.look_at(Pictures(None))


@pytest.mark.parametrize("side", [8, 28, 40, 64, 150, 500])
def test_each_size_costs_more_than_the_one_before(side):
    ladder = sizes.ladder(Images(1000, side, False))
    costs = [size.multiply_adds for size in ladder]
    assert costs == sorted(set(costs))
    for size in ladder:
        own, patch = size.keys["model.img_size"], size.keys["model.patch_size"]
        assert own % patch == 0
        assert own <= max(64, side)
    assert ladder[0].keys["model.img_size"] >= min(side, 64)


@pytest.mark.parametrize("side", [28, 500])
def test_costs_are_those_of_the_models(side):
    size = sizes.ladder(Images(1000, side, False))[1]
    fields = {key.removeprefix("model."): value for key, value in size.keys.items()}
    model = create_model("vit", num_classes=0, **fields)
    assert size.multiply_adds == describe(model).multiply_adds


def test_a_given_image_size_has_a_patch():
    for side in (16, 48, 224):
        assert all(
            size.keys["model.img_size"] == side for size in sizes.ladder(Images(9, 30, False), side)
        )
    with pytest.raises(UserError, match="use 20"):
        sizes.ladder(Images(9, 30, False), 17)


def test_the_image_sizes_of_a_model(make_config):
    config = make_config()
    config.model.img_size = 32
    own = sizes.image_sizes(config)
    assert [dict(size.keys) for size in own] == [
        {"model.img_size": 16}, {"model.img_size": 24}, {},
    ]  # fmt: skip
    costs = [size.multiply_adds for size in own]
    assert costs == sorted(costs)
