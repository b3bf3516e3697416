"""The first ViTs, pre-trained on ImageNet-21k, fine-tuned at 384 pixels as Google's code does it.

vitswin train vit_finetune:cifar10,ViT-B_16 --workdir=runs/cifar10

The second part of the argument is a file of gs://vit_models/imagenet21k: ViT-B_32, ViT-B_16,
ViT-L_32, ViT-L_16 or R50+ViT-B_16. SGD, batch 512, the gradient clipped at 1, no decay (the code's
configs/common.py). Expected, in percent (its README, dropout 0):

| model       | cifar10 | cifar100 | imagenet2012 |
| ViT-B_32    | 98.88   | 92.31    | 81.66        |
| ViT-B_16    | 99.02   | 92.06    | 84.53        |
| ViT-L_32    | 99.06   | 93.29    | 81.89        |
| ViT-L_16    | 99.13   | 92.91    | 84.47        |
| R50+ViT-B_16 | 98.72  | 90.88    | 83.72        |

The paper searched peak_lr over 0.003, 0.01, 0.03, 0.06 for ImageNet and over 0.001, 0.003, 0.01,
0.03 elsewhere. That code evaluates squashed images, without a crop.
"""

from ml_collections import ConfigDict

from configs import base, parts

MODELS = {
    "ViT-B_16": "vit_base_patch16_384",
    "ViT-B_32": "vit_base_patch32_384",
    "ViT-L_32": "vit_large_patch32_384",
    "ViT-L_16": "vit_large_patch16_384",
    "R50+ViT-B_16": "vit_base_r50_s16_384",
}
DATASETS = {  # (train split, test split, steps)
    "imagenet2012": ("train[:99%]", "validation", 20_000),
    "cifar10": ("train[:98%]", "test", 10_000),
    "cifar100": ("train[:98%]", "test", 10_000),
}
DROPOUT = ("ViT-L_16", "R50+ViT-B_16")  # of 0.1; the others have none


def get_config(arg: str = "cifar10,ViT-B_16") -> ConfigDict:
    """Returns the recipe for "DATASET,FILE"; raises UserError for others than there are."""
    dataset, file = base.choices(__file__, arg, DATASETS, MODELS)
    train_split, test_split, steps = DATASETS[dataset]
    drop_rate = 0.1 if file in DROPOUT else 0.0
    return base.recipe(
        parts.AS_INCEPTION,
        parts.take_steps(steps, warmup=500),
        model={"name": MODELS[file], "drop_rate": drop_rate},
        init_from=f"vit/imagenet21k/{file}",
        data={
            "dataset": dataset,
            "train_split": train_split,
            "test_split": test_split,
            **parts.batches(512),
        },
        preprocess={"crop_mode": "squash", "crop_fraction": 1.0},
        optim={
            "name": "sgd",
            "momentum_dtype": "bfloat16",
            "peak_lr": 0.01 if arg == "cifar10,ViT-B_16" else 0.03,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "accum_steps": 8,
        },
    )
