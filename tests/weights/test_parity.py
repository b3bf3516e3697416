"""Published checkpoints give what their originals give, to the rounding of float32."""

import functools

import jax
import numpy as np
import parity
import pytest
from kinds import mostly_long

import vitswin_jax

SHORT = {  # the longest of `make test-all` change the size of images or windows
    case_id for case_id in parity.CASES if not case_id.endswith(("window12_384", "250x230"))
}


@pytest.mark.parametrize("case_id", mostly_long(parity.CASES, SHORT))
def test_outputs_equal_the_originals(case_id, tmp_path):
    case, want = parity.CASES[case_id], parity.expected(case_id)
    image = case["image"]
    images = parity.make_images(image["seed"], image["batch"], image["height"], image["width"])
    model, variables = vitswin_jax.load_pretrained(
        parity.write(case, tmp_path),
        case["model"],
        num_classes=case["num_classes"],
        img_size=(image["height"], image["width"]),
        **case["overrides"],
    )
    apply = functools.partial(model.apply, train=False)

    def run(variables, images):
        return apply(variables, images), apply(variables, images, method="features")

    with jax.default_matmul_precision("highest"):
        got = jax.jit(run)(variables, images)
    for kind, array in zip(("logits", "features"), got, strict=True):
        if kind not in want:
            continue
        assert array.shape == want[kind].shape
        error = np.abs(np.asarray(array, np.float64) - want[kind]).max() / want[kind].std()
        assert error <= case["tolerance"]
