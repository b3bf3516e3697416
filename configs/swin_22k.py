"""Swin, Swin V2 and Swin-MoE pre-trained on ImageNet-22k, as the official code does it.

vitswin train swin_22k:swin_base_patch4_window7_224 DATASET --workdir=runs/swin_b_22k
vitswin train swin_22k:swin_moe_small_patch4_window12_192_8expert DATASET \
    --workdir=runs/swin_moe_s_22k

Batch 4096, 90 epochs, 21,841 classes (its configs/swin, swinv2 and swinmoe). Expected: what is
fine-tuned from it, swin_finetune.py; on ImageNet-22k itself Swin-MoE S with 8, 16 and 32 experts
36.8, 37.6 and 37.4, B with the same 38.1, 38.7 and 38.6 %.
"""

from ml_collections import ConfigDict

from configs import base, parts
from vitswin_jax.core.choices import one_of
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
    recipe = one_of(f"configs/swin_22k.py:{name}: its family", family, RECIPES)
    weight_decay, warmup_epochs, max_grad_norm = recipe
    rates = (rate for size, rate in DROP_PATH[family].items() if f"_{size}_" in name)
    return base.recipe(
        parts.AS_DEIT,
        parts.every(5.0),
        model={"name": name, "drop_path_rate": next(rates, 0.2)},
        data={"dataset": parts.IMAGENET_22K, **parts.batches(4096, 1024)},
        optim={
            "epochs": 90.0,
            "warmup_epochs": warmup_epochs,
            "warmup_lr": 1e-6,
            "peak_lr": 1e-3,
            "end_lr": 1e-5,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
        },
    )
