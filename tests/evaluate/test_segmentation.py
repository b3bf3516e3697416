"""Linear segmentation against loops, and on frozen features of a model that is drawn."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.data.scenes import CLASSES, make_scenes
from vitswin_jax.evaluate.segmentation import (
    IGNORED,
    fit_segmenter,
    mean_iou,
    patch_classes,
)
from vitswin_jax.weights.shapes import parameter_shapes

K = len(CLASSES)
RNG = np.random.default_rng(0)


def test_a_patch_has_the_class_of_most_of_its_pixels():
    """Of a grid that does not divide the image too, pixel by pixel."""
    masks = RNG.integers(0, K, (2, 7, 10))
    masks[0, :3] = IGNORED
    got = patch_classes(masks, (2, 3), num_classes=K)
    for n in range(2):
        for i in range(2):
            for j in range(3):
                votes = np.zeros(K)
                for y in range(7):
                    for x in range(10):
                        if (y * 2 // 7, x * 3 // 10) == (i, j) and masks[n, y, x] != IGNORED:
                            votes[masks[n, y, x]] += 1
                assert got[n, i, j] == (votes.argmax() if votes.any() else IGNORED)


def test_the_mean_is_over_classes_that_are_there():
    masks = np.array([[[0, 0, 1, 1, IGNORED]]])
    predicted = np.array([[[0, 1, 1, 1, 3]]])
    mean, each = mean_iou(predicted, masks, num_classes=4)
    assert each[:2].tolist() == [1 / 2, 2 / 3]
    assert np.isnan(each[2:]).all() and mean == pytest.approx(7 / 12)


def test_masks_of_bytes_count_as_any():
    """As a PNG's are: the pair of the classes 2 and 149 of 150 does not fit into a byte."""
    masks = np.full((1, 2, 2), 2, np.uint8)
    predicted = np.array([[[2, 2], [2, 149]]])
    assert mean_iou(predicted, masks, num_classes=150)[0] == (3 / 4 + 0) / 2


def test_features_that_are_the_classes_are_segmented_whole():
    masks = np.repeat(np.repeat(RNG.integers(0, 2, (12, 4, 4)) * 2, 8, 1), 8, 2)
    features = np.eye(3)[masks[:, 4::8, 4::8]] + 0.01 * RNG.standard_normal((12, 4, 4, 3))
    segment = fit_segmenter(features, masks, num_classes=3)
    predicted = segment(features, (4, 4))
    assert (predicted == masks[:, 4::8, 4::8]).all()  # and never the class that none has
    whole = segment(features, masks.shape[1:])
    assert whole.shape == masks.shape and (whole[:, 4::8, 4::8] == predicted).all()


def test_what_cannot_be_learned_or_measured_is_one_line():
    masks = np.full((2, 4, 4), 7)
    message = (
        r"^3 images have 2 masks; the masks have the classes 7, and must have 0 to 3 or 255\.$"
    )
    with pytest.raises(UserError, match=message):
        fit_segmenter(np.zeros((3, 2, 2, 5)), masks, num_classes=K)
    with pytest.raises(UserError, match=r"the masks have 1 class\(es\); two are needed"):
        fit_segmenter(np.zeros((2, 2, 2, 5)), 0 * masks, num_classes=K)


def test_scenes_are_of_their_seed_and_have_every_class():
    scenes, again, others = (make_scenes(12, size=32, seed=seed) for seed in (0, 0, 1))
    assert (scenes.images == again.images).all() and (scenes.images != others.images).any()
    assert (make_scenes(3, size=32).images == scenes.images[:3]).all()
    assert np.unique(scenes.masks).tolist() == list(range(K))
    assert scenes.images.dtype == np.uint8 and scenes.images.shape == (12, 32, 32, 3)
    reds = [scenes.images[scenes.masks == label][:, 0].mean() for label in (1, 2)]
    assert reds[0] > reds[1] + 40  # discs are red, squares are not


def test_frozen_maps_of_dinov3_segment_scenes():
    """Of drawn weights; better than the most frequent class everywhere, on other images."""
    model = create_model(
        "vit", img_size=32, patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=0,
        pos_embed="none", rope_type="centred", rope_rotate_half=True, reg_tokens=4,
    )  # fmt: skip
    shapes = parameter_shapes(model)
    flat = {
        key: np.float32(key.endswith("scale") + 0.2 * RNG.standard_normal(shape))
        for key, shape in shapes.items()
    }
    maps = jax.jit(functools.partial(model.apply, method="feature_maps", blocks=(-1,), norm=True))

    def features_of(images):
        return np.asarray(maps({"params": unflatten_dict(flat, sep="/")}, images / 127.5 - 1)[0])

    train, test = make_scenes(40, size=32), make_scenes(20, size=32, seed=1)
    segment = fit_segmenter(features_of(train.images), train.masks, num_classes=K)
    predicted = segment(features_of(test.images), (32, 32))
    miou, _ = mean_iou(predicted, test.masks, num_classes=K)
    nothing, _ = mean_iou(np.zeros_like(test.masks), test.masks, num_classes=K)
    assert miou > 0.45 > nothing + 0.2
