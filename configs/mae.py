"""MAE on ImageNet-1k: pre-training without labels, and fine-tuning from it (arXiv:2111.06377).

vitswin train mae:vit_base_patch16_224 --workdir=runs/mae_base
vitswin train mae:vit_base_patch16_224,finetune --workdir=runs/mae_finetuned

The model is ViT-B/16, ViT-L/16 or ViT-H/14; the second command starts from runs/mae_SIZE. 800
epochs at batch 4096, then 100 (B) or 50 at batch 1024 (facebookresearch/mae, PRETRAIN.md and
FINETUNE.md: rates there are of 256 images). Expected after fine-tuning from 1600 epochs: B 83.6,
L 85.9, H 86.9 %.
"""

from ml_collections import ConfigDict

from configs import base, parts, simmim

RECIPES = {  # model -> (size, epochs of fine-tuning, peak_lr, drop_path_rate, layer_decay)
    "vit_base_patch16_224": ("base", 100.0, 2e-3, 0.1, 0.65),
    "vit_large_patch16_224": ("large", 50.0, 4e-3, 0.2, 0.75),
    "vit_huge_patch14_224": ("huge", 50.0, 4e-3, 0.3, 0.75),
}


def get_config(arg: str = "vit_base_patch16_224") -> ConfigDict:
    """Returns the recipe of a model and a stage; raises UserError for others than there are."""
    name, stage = base.choices(__file__, arg, RECIPES, ("", "finetune"))
    size, epochs, peak_lr, drop_path_rate, layer_decay = RECIPES[name]
    both = {
        "preprocess": {"crop_fraction": 0.875, **simmim.IMAGENET},
        "optim": {"weight_decay": 0.05},
    }
    if stage:
        return base.recipe(
            parts.on_imagenet_1k(1024),
            parts.AS_DEIT,
            both,
            model={
                "name": name,
                "drop_path_rate": drop_path_rate,
                "global_pool": "avg",
                "fc_norm": True,
            },
            init_from=f"runs/mae_{size}",
            optim={
                "epochs": epochs,
                "warmup_epochs": 5.0,
                "peak_lr": peak_lr,
                "end_lr": 1e-6,
                "layer_decay": layer_decay,
            },
        )
    return base.recipe(
        parts.on_imagenet_1k(4096),
        parts.every(20.0, 5.0),
        both,
        model={"name": name},
        pretrain={
            "method": "mae",
            "mask_ratio": 0.75,
            "norm_pix": True,
            "decoder_dim": 512,
            "decoder_depth": 8,
            "decoder_heads": 16,
        },
        augment={"scale": (0.2, 1.0)},
        optim={"epochs": 800.0, "warmup_epochs": 40.0, "peak_lr": 2.4e-3, "b2": 0.95},
    )
