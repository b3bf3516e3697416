"""All variants by name, and the heads of published weights.

The sizes are in `vit_variants.py` and `swin_variants.py`, other names in `aliases.py`; these import
nothing but the standard library.
"""

from __future__ import annotations

from vitswin_jax.models import swin_variants, vit_variants
from vitswin_jax.models.vit_variants import Variants

VARIANTS: Variants = vit_variants.VARIANTS | swin_variants.VARIANTS
"""Name -> (family, fields)."""

MICROSOFT_ENDINGS: dict[str, int] = {"_22kto1k_finetune": 1000, "_22kto1k_ft": 1000, "_22k": 21841}
"""What Microsoft's names end in -> classes of the head."""

TAG_CLASSES: tuple[tuple[str, int | None], ...] = (
    # (pattern at the end of timm's `name.tag`, classes), the first that matches; None: the default.
    (r"in1k", None),
    (r"ms_in22k", 21841),
    (r"orig_in21k|in2[12]k_ijepa|in1k_ijepa", 0),
    (r"in21k", 21843),
    (r"in12k", 11821),
    (r"lvd142m|webli|webli_i18n|mae|dino|pali.*", 0),
)
"""Heads of the weights behind timm's tags; those of CLIP's (a projection) the file alone knows."""
