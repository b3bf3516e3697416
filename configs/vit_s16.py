"""ViT-S/16 on ImageNet-1k, the simple and strong baseline (arXiv:2205.01580).

python train.py --config=configs/vit_s16.py:90 --workdir=runs/vit_s16

The argument is the number of epochs: 90, 150 or 300. Batch 1024, big_vision's vit_s16_i1k.py.
Expected: 76.5, 78.5 and 80.0 % (table 1 of the paper), the first in 7 hours on a TPU v3-8.
"""

from ml_collections import ConfigDict

from configs import base, parts
from vitswin_jax.types import UserError


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
    config.data.update(
        dataset=parts.IMAGENET_1K,
        train_split="train[:99%]",
        test_split="validation",
        batch_size=1024,
        eval_batch_size=1024,
        workers=8,
    )
    parts.augment_as_inception(config)
    config.augment.update(rand_augment="randaug(2,10)", mixup_alpha=0.2)
    config.optim.update(
        name="big_vision_adam",
        momentum_dtype="bfloat16",
        epochs=float(epochs),
        warmup_epochs=0.0,
        warmup_steps=10_000,
        peak_lr=1e-3,
        weight_decay=1e-4,
        max_grad_norm=1.0,
    )
    config.run.update(eval_epochs=2.0, checkpoint_epochs=1.0)
    return config.lock()
