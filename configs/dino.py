"""DINO and iBOT on ImageNet-1k: self-distillation without labels (arXiv:2104.14294, 2111.07832).

vitswin train dino:vit_small_patch16_224 --workdir=runs/dino_small
vitswin train dino:vit_small_patch16_224,ibot --workdir=runs/ibot_small

The model is ViT-S/16 or ViT-B/16. 100 epochs at batch 1024, with 8 small views of 96 pixels
(facebookresearch/dino, README: the rate there is of 256 images). Expected after 100 epochs of DINO:
ViT-S 69.3 % by nearest neighbours and 74.0 % by a linear probe. The originals' weight decay rises
from 0.04 to 0.4; here it is 0.04.
"""

from ml_collections import ConfigDict

from configs import base, parts, simmim

MODELS = ("vit_small_patch16_224", "vit_base_patch16_224")
HEADS = {  # what the head and the loss are
    "": {"out_dim": 65536},
    "ibot": {"out_dim": 8192, "patch_weight": 1.0, "mask_ratio": 0.3},
}


def get_config(arg: str = MODELS[0]) -> ConfigDict:
    """Returns the recipe of a model and a method; raises UserError for others than there are."""
    name, method = base.choices(__file__, arg, MODELS, HEADS)
    return base.recipe(
        parts.on_imagenet_1k(1024),
        parts.every(10.0),
        model={"name": name, "drop_path_rate": 0.1},
        preprocess={"crop_fraction": 0.875, **simmim.IMAGENET},
        pretrain={
            "method": "dino",
            "warmup_teacher_temp": 0.04,
            "teacher_temp": 0.07,
            "warmup_teacher_temp_epochs": 30.0,
            **HEADS[method],
        },
        augment={
            "scale": (0.25, 1.0),
            "local_crops": 8,
            "local_size": 96,
            "local_scale": (0.05, 0.25),
            "color_jitter": 0.4,
            "hue": 0.1,
            "grayscale": 0.2,
            "blur": (1.0, 0.1, 0.5),
            "solarize": (0.0, 0.2, 0.0),
        },
        optim={
            "epochs": 100.0,
            "warmup_epochs": 10.0,
            "peak_lr": 2e-3,
            "end_lr": 1e-6,
            "weight_decay": 0.04,
            "max_grad_norm": 3.0,
        },
    )
