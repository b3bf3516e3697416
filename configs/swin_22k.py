"""Swin, Swin V2 and Swin-MoE pre-trained on ImageNet-22k, as the official code does it.

python train.py --config=configs/swin_22k.py:swin_base_patch4_window7_224 \
    --workdir=runs/swin_b_22k --config.data.dataset=DATASET
python train.py --config=configs/swin_22k.py:swin_moe_small_patch4_window12_192_8expert \
    --workdir=runs/swin_moe_s_22k --config.data.dataset=DATASET

Batch 4096, 90 epochs, 21,841 classes (its configs/swin, swinv2 and swinmoe). Expected: what is
fine-tuned from it, swin_finetune.py; on ImageNet-22k itself Swin-MoE S with 8, 16 and 32 experts
36.8, 37.6 and 37.4, B with the same 38.1, 38.7 and 38.6 %.
"""

from ml_collections import ConfigDict

from configs import base, parts
from vitswin_jax.core.types import UserError
from vitswin_jax.models.registry import create_model, family_of

RECIPES = {  # family -> (weight_decay, warmup_epochs, max_grad_norm)
    "swin": (0.05, 5.0, 5.0),
    "swinv2": (0.1, 5.0, 5.0),
    "swin_moe": (0.1, 10.0, 3.0),
}
DROP_PATH = {  # family -> of each size; another is 0.2
    "swin": {"tiny": 0.1},
    "swinv2": {},
    "swin_moe": {"base": 0.3},
}


def get_config(name: str = "swin_base_patch4_window7_224") -> ConfigDict:
    """Returns the recipe for one model; raises UserError for a family that has none."""
    family = family_of(create_model(name))
    if family not in RECIPES:
        raise UserError(
            f"configs/swin_22k.py:{name}: the argument is a model of {', '.join(RECIPES)}."
        )
    weight_decay, warmup_epochs, max_grad_norm = RECIPES[family]
    rates = (rate for size, rate in DROP_PATH[family].items() if f"_{size}_" in name)
    config = base.get_config()
    with config.unlocked():
        config.model = base.model_section(name, drop_path_rate=next(rates, 0.2), dtype="bfloat16")
    config.data.update(dataset=parts.IMAGENET_22K, batch_size=4096, eval_batch_size=1024, workers=8)
    parts.augment_as_deit(config)
    config.optim.update(
        epochs=90.0,
        warmup_epochs=warmup_epochs,
        warmup_lr=1e-6,
        peak_lr=1e-3,
        end_lr=1e-5,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
    )
    config.run.update(eval_epochs=5.0, checkpoint_epochs=1.0)
    return config.lock()
