"""What the file of a Vision Transformer shows, and what is known where it does not."""

import pytest

from vitswin_jax.models.registry import model_kwargs
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.weights.sources.vit_fields import GATED_HEADS, HEADS

WITHOUT_WEIGHTS = {"vit_base_patch16_gap_224": 12}
"""Variants of which timm has no weights, and the heads of the published models of their width."""


@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name][0] == "vit"])
def test_widths_show_the_heads_of_published_models(name):
    fields = model_kwargs(name)
    table = GATED_HEADS if fields["act"] == "swiglu" else HEADS
    want = WITHOUT_WEIGHTS.get(name, fields["num_heads"])
    if name.startswith("test_"):  # two heads of 32, where all others' have at least 64
        assert fields["embed_dim"] not in table
    else:
        assert table[fields["embed_dim"]] == want
