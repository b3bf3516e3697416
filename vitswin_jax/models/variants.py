"""All variants by name.

The sizes are in `vit_variants.py`, `vit_descendants.py` and `swin_variants.py`, other names in
`aliases.py`; these import nothing but the standard library.
"""

from __future__ import annotations

from vitswin_jax.models import swin_variants, vit_descendants, vit_variants
from vitswin_jax.models.vit_variants import Variants

VARIANTS: Variants = vit_variants.VARIANTS | vit_descendants.VARIANTS | swin_variants.VARIANTS
"""Name -> (family, fields)."""
