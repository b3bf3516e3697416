"""DeiT-3 on ImageNet-1k (arXiv:2204.07118): three augmentations, LayerScale, a binary loss.

vitswin train deit3:deit3_small_patch16_224 --workdir=runs/deit3_s

Batch 2048, 800 epochs of LAMB, whose original clips at 1 (facebookresearch/deit,
README_revenge.md; apex). Expected at 224 pixels:
S 81.4, B 83.8, L 84.9 % (the larger are trained at 192 and then fine-tuned at 224 for 20 epochs).
"""

from ml_collections import ConfigDict

from configs import base, parts

MODELS = {  # (pixels, peak_lr, stochastic depth)
    "deit3_small_patch16_224": (224, 4e-3, 0.05),
    "deit3_base_patch16_224": (192, 3e-3, 0.2),
    "deit3_large_patch16_224": (192, 3e-3, 0.45),
}


def get_config(name: str = "deit3_small_patch16_224") -> ConfigDict:
    """Returns the recipe for one model; raises UserError for others than there are."""
    (name,) = base.choices(__file__, name, MODELS)
    img_size, peak_lr, drop_path_rate = MODELS[name]
    return base.recipe(
        parts.on_imagenet_1k(2048),
        parts.every(10.0),
        model={
            "name": name,
            "img_size": img_size,
            "init_values": 1e-4,
            "drop_path_rate": drop_path_rate,
        },
        preprocess={"crop_fraction": 1.0},
        augment={
            "auto_augment": "3a",
            "color_jitter": 0.3,
            "repeats": 3,
            "mixup_alpha": 0.8,
            "cutmix_alpha": 1.0,
        },
        loss={"name": "bce"},
        optim={
            "name": "lamb",
            "epochs": 800.0,
            "schedule_unit": "epoch",
            "warmup_prefix": False,
            "warmup_epochs": 5.0,
            "warmup_lr": 1e-6,
            "peak_lr": peak_lr,
            "end_lr": 1e-5,
            "weight_decay": 0.05,
            "max_grad_norm": 1.0,
            "eps": 1e-8,
        },
    )
