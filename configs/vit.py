"""ViT from scratch, as the paper pre-trains it (arXiv:2010.11929, table 3).

vitswin train vit:i1k,vit_base_patch16_224 --workdir=runs/vit_b16_i1k
vitswin train vit:i21k,vit_base_patch16_224 DATASET --workdir=runs/vit_b16_i21k

Batch 4096. Expected on ImageNet-1k, after its 300 epochs: B/32 69.2, B/16 74.8, L/32 66.9, L/16
72.6 %; on a held-out part of ImageNet-21k, after its 90: B/32 44.0, B/16 47.9, L/16 49.9 % (the
authors, vision_transformer issue 62). ImageNet-21k's loss is a sigmoid, its head begins at -10
(issue 2 there). Pre-trained models are fine-tuned by vit_finetune.py.
"""

from ml_collections import ConfigDict

from configs import base, parts

ON_1K = {
    "optim": {
        "epochs": 300.0,
        "peak_lr": 3e-3,
        "schedule": "cosine",
        "weight_decay": 0.3,
        "max_grad_norm": 1.0,
    }
}
ON_21K = {
    "data": {"dataset": parts.IMAGENET_21K, "train_split": "train", "test_split": "test"},
    "loss": {"name": "sigmoid", "head_bias_init": -10.0},
    "optim": {
        "epochs": 90.0,
        "peak_lr": 1e-3,
        "schedule": "linear",
        "end_lr": 1e-5,
        "weight_decay": 0.03,
    },
}
DATASETS = {"i1k": ON_1K, "i21k": ON_21K}


def get_config(arg: str = "i1k,vit_base_patch16_224") -> ConfigDict:
    """Returns the recipe for "DATASET,MODEL"; raises UserError for an unknown dataset."""
    data, _, name = arg.partition(",")
    (data,) = base.choices(__file__, data, DATASETS)
    config = base.recipe(
        parts.on_imagenet_1k(4096, train_split="train[:99%]"),
        parts.AS_INCEPTION,
        parts.every(10.0),
        {"optim": {"warmup_epochs": 0.0, "warmup_steps": 10_000}},
        model={"name": name or "vit_base_patch16_224", "drop_rate": 0.1},
        **DATASETS[data],
    )
    if data == "i21k":
        config.model.pre_logits = config.model.embed_dim
    return config
