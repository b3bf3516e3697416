"""ViT-S/16 on ImageNet-1k, the simple and strong baseline (arXiv:2205.01580).

vitswin train vit_s16:90 --workdir=runs/vit_s16

The argument is the number of epochs: 90, 150 or 300. Batch 1024, big_vision's vit_s16_i1k.py.
Expected: 76.5, 78.5 and 80.0 % (table 1 of the paper), the first in 7 hours on a TPU v3-8.
"""

from ml_collections import ConfigDict

from configs import base, parts
from vitswin_jax.core.types import UserError


def get_config(epochs: str = "90") -> ConfigDict:
    """Returns the recipe; raises UserError where the argument is no number."""
    if not epochs.isdecimal():
        raise UserError(f"configs/vit_s16.py:{epochs}: the argument is the number of epochs.")
    return make("vit_small_patch16_224", float(epochs), pos_embed="sincos2d")


def make(name: str, epochs: float, **fields: str) -> ConfigDict:
    """Returns the recipe for a ViT and a number of epochs; positions.py has it too."""
    head = {"class_token": False, "global_pool": "avg"}
    config = base.recipe(
        parts.on_imagenet_1k(1024, train_split="train[:99%]"),
        parts.AS_INCEPTION,
        parts.as_big_vision(epochs),
        parts.every(2.0),
        model={"name": name, **head, **fields},
        augment={"rand_augment": "randaug(2,10)", "mixup_alpha": 0.2},
    )
    config.model.pre_logits = config.model.embed_dim
    return config
