"""What the file of a Vision Transformer shows, and what is known where it does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax import UserError, create_model, load_pretrained, save_pretrained
from vitswin_jax.models.registry import model_kwargs
from vitswin_jax.models.vit_variants import VARIANTS
from vitswin_jax.weights.sources import vit_fields
from vitswin_jax.weights.sources.vit_fields import GATED_HEADS, HEADS

WITHOUT_WEIGHTS = {"vit_base_patch16_gap_224": 12}
"""Variants of which timm has no weights, and the heads of the published models of their width."""


@pytest.mark.parametrize("name", VARIANTS)
def test_widths_show_the_heads_of_published_models(name):
    """Of plain ViTs; files of the others need a name, which says their heads."""
    fields = model_kwargs(name)
    table = GATED_HEADS if fields["act"] == "swiglu" else HEADS
    want = WITHOUT_WEIGHTS.get(name, fields["num_heads"])
    if name.startswith("test_"):  # two heads of 32, where all others' have at least 64
        assert fields["embed_dim"] not in table
    else:
        assert table[fields["embed_dim"]] == want


@pytest.mark.long
def test_pixels_beyond_the_patches_are_cut_where_published_models_do_so(tmp_path, key, monkeypatch):
    """SO400M/14 takes 384 pixels, 27.4 patches, whether a name or the caller says so or not."""
    model = create_model("vit", img_size=12, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    variables = model.init(key, jnp.zeros((1, 12, 12, 3)))
    path = save_pretrained(tmp_path / "a.safetensors", model, variables, format="timm")
    with pytest.raises(UserError, match="img_size=14x14 is no multiple of patch_size=4x4"):
        load_pretrained(path, num_heads=2, img_size=14)
    monkeypatch.setattr(vit_fields, "CROPPED", {(16, 4)})
    assert load_pretrained(path, num_heads=2)[0].img_size == 12
    whole, variables = load_pretrained(path, num_heads=2, img_size=14)
    assert (whole.img_size, whole.grid) == (14, (3, 3))
    images = jax.random.normal(key, (1, 14, 14, 3))
    features = functools.partial(whole.apply, variables, method="features")
    cut = model.apply(variables, images[:, :12, :12], method="features")
    np.testing.assert_array_equal(features(images), cut)
