"""Predictions that are averaged: probabilities, and not logits."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from vitswin_jax.evaluate.scales import average_logits, mirrored


@pytest.mark.parametrize(("several", "function"), [(False, softmax), (True, expit)])
def test_the_probabilities_of_the_average_are_the_mean(several, function):
    logits = [np.random.default_rng(i).normal(size=(5, 4), scale=4) for i in range(3)]
    each = [x.astype(np.float32) for x in logits]
    how = {} if several else {"axis": -1}
    expected = np.mean([function(x.astype(np.float64), **how) for x in each], 0)
    np.testing.assert_allclose(
        function(average_logits(each, several=several), **how), expected, atol=1e-6
    )
    np.testing.assert_array_equal(average_logits(each[:1], several=several), each[0])
    certain = np.full((1, 2), 1000, np.float32)
    assert np.isfinite(average_logits([certain, certain], several=several)).all()


def test_mirrored_batches_keep_labels_and_masks():
    image = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    batch = {"image": image, "label": np.array([3]), "mask": np.ones(1, np.float32)}
    (found,) = mirrored([batch])
    np.testing.assert_array_equal(found["image"][0, :, 0], image[0, :, 3])
    assert (found["label"], found["mask"]) == (batch["label"], batch["mask"])
