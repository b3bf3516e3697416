"""Our variants are what timm's models of the same names are, field by field."""

import pytest
import timm_models

from vitswin_jax import create_model
from vitswin_jax.models.registry import model_kwargs
from vitswin_jax.models.variants import VARIANTS

DERIVED = {"family", "hidden", "windows", "parameters"}
"""Facts of timm's models that are not fields here."""


@pytest.mark.parametrize("name", timm_models.MODELS)
def test_a_variant_is_timms_model_of_that_name(name):
    want, got = timm_models.MODELS[name], model_kwargs(name)
    differ = {
        key: (got[key], value)
        for key, value in want.items()
        if key not in DERIVED and got[key] != value
    }
    assert not differ
    assert VARIANTS[name][0] == want["family"]
    assert round(got["embed_dim"] * got["mlp_ratio"]) == want["hidden"]
    if "windows" in want:
        blocks = create_model(name).geometry().blocks
        windows = {block.stage: block.cut.window_size for block in blocks}
        assert tuple(windows.values()) == want["windows"]


def test_models_that_no_family_computes_have_no_row():
    assert not VARIANTS.keys() & timm_models.OTHERS.keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_row_has_details_of_code_only_where_they_differ_from_its_familys(name):
    """For if a user gives the name, they go before the defaults of the file's source."""
    family, row = VARIANTS[name]
    details = {"act", "norm_eps", "qkv_bias", "window_clip", "pad_before_roll", "mask_value"}
    defaults = model_kwargs(family)
    assert not [key for key in row.keys() & details if defaults[key] == row[key]]
