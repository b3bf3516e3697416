"""DeiT on ImageNet-1k, with and without distillation (arXiv:2012.12877).

vitswin train deit:deit_small_patch16_224 --workdir=runs/deit_s
vitswin train deit:deit_small_distilled_patch16_224 --workdir=runs/deit_sd \
    --distill.teacher=swin/swin_base_patch4_window7_224

Batch 1024, 300 epochs, the rate changed once an epoch (facebookresearch/deit, main.py; table 9).
Expected: Ti 72.2, S 79.8, B 81.8 %; with hard distillation, from a RegNetY-16GF, 74.5, 81.2 and
83.4 %. That teacher is no model of this project: name another, whose numbers will be others.
The average of the weights is kept and, as there, not evaluated.
"""

from ml_collections import ConfigDict

from configs import base, parts


def get_config(name: str = "deit_small_patch16_224") -> ConfigDict:
    """Returns the recipe for one model."""
    return base.recipe(
        parts.on_imagenet_1k(1024),
        parts.AS_DEIT,
        parts.every(5.0),
        model={"name": name, "drop_path_rate": 0.1},
        preprocess={"crop_fraction": 0.875},
        augment={"repeats": 3},
        ema={"decay": 0.99996, "evaluate": False},
        optim={
            "epochs": 300.0,
            "schedule_unit": "epoch",
            "warmup_prefix": False,
            "warmup_epochs": 5.0,
            "warmup_lr": 1e-6,
            "peak_lr": 1e-3,
            "end_lr": 1e-5,
            "weight_decay": 0.05,
        },
    )
