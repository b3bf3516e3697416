"""StableHLO files give JAX's numbers, for batches of any size and from a file alone."""

import json

import jax
import numpy as np
import pytest
from jax import export as jax_export
from kinds import mostly_long

from vitswin_jax.core.types import UserError
from vitswin_jax.export import stablehlo
from vitswin_jax.export.program import sample_images

KINDS = [("swin", True), ("swinv2", False)]


@pytest.mark.parametrize(("key", "quantize"), mostly_long(KINDS, KINDS[:1]), ids=str)
def test_it_gives_jaxs_numbers(make, tmp_path, key, quantize):
    program, path = make(key, quantize=quantize), tmp_path / "model.stablehlo"
    difference = stablehlo.export_stablehlo(path, program)
    assert difference.largest < 1e-5
    exported = jax_export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == stablehlo.PLATFORMS
    (spec,) = exported.in_avals
    assert (str(spec.shape[0]), *spec.shape[1:]) == ("batch", *program.image_shape)
    said = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert said["class_names"][0] == "Klasse 0 ä"
    assert said["versions"]["jax"] == jax.__version__
    assert said["weights"].startswith("int8" if quantize else "float32")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "model.stablehlo",
        "model.stablehlo.json",
    ]


def test_a_vit_too_from_its_file_alone(make, forward, tmp_path):
    program, path = make("vit"), tmp_path / "model.stablehlo"
    stablehlo.export_stablehlo(path, program)
    images, run = sample_images(program), stablehlo.load_stablehlo(path)
    np.testing.assert_allclose(run(images[:2]), forward(program, images)[:2], atol=1e-5)


def test_a_place_that_cannot_be_written(make, tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*none"):
        stablehlo.export_stablehlo(tmp_path / "none" / "model.stablehlo", make("vit"))
