"""AugReg: ViTs with the augmentation that suits their size and their data (arXiv:2106.10270).

vitswin train augreg:i1k,S/16 --workdir=runs/augreg_s16
vitswin train augreg:i21k,B/16 DATASET --workdir=runs/augreg_b16

Batch 4096, 300 epochs, 224 pixels, as big_vision's vit_i1k.py and vit_i21k.py. Expected on
ImageNet-1k's validation set, from scratch: B/16 about 79 % (big_vision issue 7); after fine-tuning
at 384 (transfer.py) those from ImageNet-1k S/16 81.1, B/32 78.8, B/16 81.1 %, and those from
ImageNet-21k Ti/16 78.2, S/32 79.6, S/16 83.7, B/32 83.6, B/16 85.5, L/16 85.6 %.
"""

from ml_collections import ConfigDict

from configs import base, parts
from vitswin_jax.models.registry import resolve_name

LEVELS = {  # RandAugment (layers, magnitude), and mixup's alpha
    "none": (None, 0.0),
    "light1": ("randaug(2,0)", 0.0),
    "light2": ("randaug(2,10)", 0.2),
    "medium1": ("randaug(2,15)", 0.2),
    "medium2": ("randaug(2,15)", 0.5),
    "strong1": ("randaug(2,20)", 0.5),
    "strong2": ("randaug(2,20)", 0.8),
}
MODELS = {  # the level for ImageNet-1k, for ImageNet-21k
    "S/16": ("medium2", "light1"),
    "Ti/16": ("light1", "none"),
    "S/32": ("medium1", "none"),
    "B/32": ("medium2", "light2"),
    "B/16": ("medium2", "light2"),
    "L/16": ("medium2", "medium2"),
}


def get_config(arg: str = "i1k,S/16") -> ConfigDict:
    """Returns the recipe for "DATASET,MODEL"; raises UserError for others than there are."""
    data, model = base.choices(__file__, arg, ("i1k", "i21k"), MODELS)
    from_1k = data == "i1k"
    rand_augment, mixup_alpha = LEVELS[MODELS[model][0 if from_1k else 1]]
    all_of_21k = {"dataset": parts.IMAGENET_21K, "train_split": "train", "test_split": "test"}
    head = {} if from_1k else {"class_token": False, "global_pool": "avg"}
    config = base.recipe(
        parts.on_imagenet_1k(4096, train_split="train[:99%]"),
        parts.AS_INCEPTION,
        parts.as_big_vision(300.0),
        parts.every(10.0),
        model={"name": resolve_name(model)[0], **head},
        data={} if from_1k else all_of_21k,
        augment={"rand_augment": rand_augment, "mixup_alpha": mixup_alpha},
        loss={"name": "sigmoid", "head_bias_init": -6.9 if from_1k else -10.0},
    )
    if from_1k:
        config.model.pre_logits = config.model.embed_dim
    return config
