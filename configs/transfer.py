"""AugReg and Swin from ImageNet-21k, transferred to another dataset by SGD, in a few minutes.

vitswin train transfer:flowers,vit_base_patch16_224 --workdir=runs/flowers

The dataset is imagenet, cifar10, cifar100, pets or flowers; the model any of `WEIGHTS`, at its own
size. Batch 512, SGD with momentum 0.9, the gradient clipped at 1, no decay, cosine. What was
searched, on a held-out part of the training split (AugReg's notebook): peak_lr 0.001, 0.003, 0.01
and 0.03 (ImageNet 0.01 and 0.03), steps 500 and 2,500 for pets and flowers and 2,500 and 10,000 for
CIFAR. Expected for B/32 at 384 pixels, mean of 5 runs (big_vision's transfer.py), with these rates:
ImageNet 83.27 (0.03), CIFAR-10 98.55 (0.003), CIFAR-100 91.35 (0.01), pets 93.78 (0.003), flowers
99.43 % (0.003); it cuts CIFAR's images at random from 448 pixels, `RANDOM_CROP`.
"""

from ml_collections import ConfigDict

from configs import base, parts
from vitswin_jax.models.variants import VARIANTS

DATASETS = {  # TFDS's name, train and test split, steps, warmup, peak_lr
    "imagenet": ("imagenet2012", "train[:99%]", "validation", 20_000, 500, 0.03),
    "cifar10": ("cifar10", "train[:98%]", "test", 10_000, 500, 0.003),
    "cifar100": ("cifar100", "train[:98%]", "test", 10_000, 500, 0.01),
    "pets": ("oxford_iiit_pet", "train[:90%]", "test", 500, 100, 0.003),
    "flowers": ("oxford_flowers102", "train[:90%]", "test", 500, 100, 0.003),
}
RANDOM_CROP = ("cifar10", "cifar100")
_AUGREG = "-i21k-300ep-lr_0.001-aug_{}-wd_{}-do_0.0-sd_0.0"
WEIGHTS = {  # a variant without its image size -> where it starts
    "vit_base_patch16": "augreg/B_16" + _AUGREG.format("medium1", 0.1),
    "vit_tiny_patch16": "augreg/Ti_16" + _AUGREG.format("none", 0.03),
    "vit_small_patch32": "augreg/S_32" + _AUGREG.format("none", 0.1),
    "vit_small_patch16": "augreg/S_16" + _AUGREG.format("light1", 0.03),
    "vit_base_patch32": "augreg/B_32" + _AUGREG.format("light1", 0.1),
    "vit_base_patch8": "augreg/B_8" + _AUGREG.format("medium2", 0.1),
    "vit_large_patch16": "augreg/L_16" + _AUGREG.format("strong1", 0.1),
    "vit_tiny_r_s16_p8": "augreg/R_Ti_16" + _AUGREG.format("none", 0.03),
    "vit_small_r26_s32": "augreg/R26_S_32" + _AUGREG.format("light1", 0.1),
    "vit_large_r50_s32": "augreg/R50_L_32" + _AUGREG.format("medium2", 0.1),
    "swin_tiny_patch4_window7": "swin/swin_tiny_patch4_window7_224_22k",
    "swin_small_patch4_window7": "swin/swin_small_patch4_window7_224_22k",
    "swin_base_patch4_window7": "swin/swin_base_patch4_window7_224_22k",
    "swin_base_patch4_window12": "swin/swin_base_patch4_window12_384_22k",
    "swin_large_patch4_window7": "swin/swin_large_patch4_window7_224_22k",
    "swin_large_patch4_window12": "swin/swin_large_patch4_window12_384_22k",
}
MODELS = {
    f"{name}_{size}": weights
    for name, weights in WEIGHTS.items()
    for size in (224, 384)
    if f"{name}_{size}" in VARIANTS
}


def get_config(arg: str = "cifar10,vit_base_patch16_224") -> ConfigDict:
    """Returns the recipe for "DATASET,MODEL"; raises UserError for others than there are."""
    dataset, name = base.choices(__file__, arg, DATASETS, MODELS)
    tfds_name, train_split, test_split, steps, warmup, peak_lr = DATASETS[dataset]
    fraction = 384 / 448
    random = {"crop": "random", "crop_fraction": fraction} if dataset in RANDOM_CROP else {}
    return base.recipe(
        parts.AS_INCEPTION,
        parts.take_steps(steps, warmup=warmup),
        model={"name": name},
        init_from=MODELS[name],
        data={
            "dataset": tfds_name,
            "train_split": train_split,
            "test_split": test_split,
            **parts.batches(512),
        },
        preprocess={"crop_fraction": fraction},
        augment=random,
        optim={
            "name": "sgd",
            "momentum_dtype": "bfloat16",
            "peak_lr": peak_lr,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
        },
        run={"log_steps": 10, "eval_epochs": 0.0, "eval_steps": steps // 5},
    )
