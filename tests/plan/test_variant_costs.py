"""The table of costs is what the models cost.

tests/models/test_counts.py and test_published.py hold the table to what was published.
"""

import pytest

from vitswin_jax.models.registry import create_model
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.nn.layers import pair
from vitswin_jax.plan.cost import describe
from vitswin_jax.plan.variant_costs import variant_costs


def test_every_variant_is_in_it():
    missing = VARIANTS.keys() ^ variant_costs().keys()
    assert not missing, "run python -m vitswin_jax.plan.cost"
    for name, cost in variant_costs().items():
        assert cost.img_size == pair(create_model(name).img_size)


ONE_OF_EACH_KIND = (
    "vit_tiny_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch32_siglip_256",
    "vit_base_patch32_clip_224",
    "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swin_s3_tiny_224",
    "swinv2_tiny_window8_256",
    "swin_mlp_tiny_c6_patch4_window8_256",
    "swin_moe_small_patch4_window12_192_8expert",
)


@pytest.mark.parametrize(
    "name",
    [
        *ONE_OF_EACH_KIND,
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in VARIANTS
            if name not in ONE_OF_EACH_KIND
        ),
    ],
)
def test_it_is_what_the_trace_counts(name):
    assert variant_costs()[name] == describe(create_model(name, scan=True))
