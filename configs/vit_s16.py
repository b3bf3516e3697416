"""ViT-S/16 on ImageNet-1k, the simple and strong baseline (arXiv:2205.01580).

python train.py --config=configs/vit_s16.py:90 --workdir=runs/vit_s16

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
    config = base.get_config()
    with config.unlocked():
        config.model = base.model_section(
            "vit_small_patch16_224",
            class_token=False,
            global_pool="avg",
            pos_embed="sincos2d",
            dtype="bfloat16",
        )
    config.model.pre_logits = config.model.embed_dim
    parts.use_imagenet_1k(config, batch_size=1024, train_split="train[:99%]")
    parts.augment_as_inception(config)
    config.augment.update(rand_augment="randaug(2,10)", mixup_alpha=0.2)
    parts.train_as_big_vision(config, epochs=float(epochs))
    config.run.update(eval_epochs=2.0, checkpoint_epochs=1.0)
    return config.lock()
