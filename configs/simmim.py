"""SimMIM on ImageNet-1k: pre-training without labels, and fine-tuning from it (arXiv:2111.09886).

vitswin train simmim:swin --workdir=runs/simmim_swin
vitswin train simmim:swin,finetune --workdir=runs/simmim_swin_finetuned

The argument is swin, swinv2 or vit, all base, and for the second command `,finetune`, which starts
from runs/simmim_FAMILY. 800 and 100 epochs, batch 2048 (microsoft/SimMIM and
microsoft/Swin-Transformer, configs/simmim: rates there are of 512 images). Expected after
fine-tuning: Swin 84.0 %, ViT 83.8 %.
"""

from ml_collections import ConfigDict

from configs import base, parts

# (model, fields of both stages, of pre-training, of fine-tuning, layer_decay)
RECIPES = {
    "swin": (
        "swin_base_patch4_window7_224",
        {},
        {"img_size": 192, "window_size": 6},
        {"drop_path_rate": 0.1},
        0.8,
    ),
    "swinv2": (
        "swinv2_base_window12_192",
        {"drop_path_rate": 0.1},
        {},
        {"img_size": 224, "window_size": 14, "pretrained_window_sizes": (12, 12, 12, 6)},
        0.75,
    ),
    "vit": (
        "vit_base_patch16_224",
        {
            "pos_embed": "relative",
            "init_values": 0.1,
            "global_pool": "avg",
            "drop_path_rate": 0.1,
        },
        {"pos_embed_at": "shared"},
        {"pos_embed_at": "every", "fc_norm": True},
        0.65,
    ),
}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def get_config(arg: str = "swin") -> ConfigDict:
    """Returns the recipe of a family and a stage; raises UserError for others than there are."""
    family, stage = base.choices(__file__, arg, RECIPES, ("", "finetune"))
    name, fields, pretraining, finetuning, layer_decay = RECIPES[family]
    both = {
        "preprocess": {"crop_fraction": 0.875, **IMAGENET},
        "optim": {"weight_decay": 0.05, "max_grad_norm": 5.0},
    }
    if stage:
        return base.recipe(
            parts.on_imagenet_1k(2048),
            parts.AS_DEIT,
            both,
            model={"name": name, **fields, **finetuning},
            init_from=f"runs/simmim_{family}",
            optim={
                "epochs": 100.0,
                "warmup_epochs": 20.0,
                "warmup_prefix": family == "swinv2",  # of the two codes
                "warmup_lr": 1e-6,
                "peak_lr": 5e-3,
                "end_lr": 1e-6,
                "layer_decay": layer_decay,
            },
        )
    return base.recipe(
        parts.on_imagenet_1k(2048),
        parts.every(20.0, 5.0),
        both,
        model={"name": name, **fields, **pretraining},
        pretrain={
            "method": "simmim",
            "mask_patch": 32,
            "mask_ratio": 0.6,
            "norm_window": 47 if family == "swinv2" else None,
        },
        augment={"scale": (0.67, 1.0), "interpolation": "bilinear"},
        optim={
            "epochs": 800.0,
            "warmup_epochs": 10.0,
            "warmup_lr": 2e-6,
            "peak_lr": 4e-4,
            "schedule": "multistep",
            "milestone_epochs": (700.0,),
            "gamma": 0.1,
        },
    )
