"""The flower_photos fine-tuning of the WZMIAOMIAO tutorials, ViT and Swin.

vitswin train tutorial:vit flower_photos --workdir=runs/flower_vit
vitswin train tutorial:swin flower_photos --workdir=runs/flower_swin

The dataset is the folder that flower_photos.tgz unpacks to: 3,670 images in five class folders, a
fifth of them held out. The tutorials freeze all of ViT but its head, and nothing of Swin:
vit,all and swin,head are the other ways round. Ten epochs, batch 8; they state no accuracy.
"""

from ml_collections import ConfigDict

from configs import base, parts

SGD = {
    "name": "sgd",
    "peak_lr": 1e-3,
    "end_lr": 1e-5,
    "schedule_unit": "epoch",
    "weight_decay": 5e-5,
}
ADAMW = {"peak_lr": 1e-4, "schedule": "constant", "weight_decay": 0.05}
MODELS = {  # (model, the weights it starts from, what is trained, optimizer)
    "vit": ("vit_base_patch16_224", "vit/imagenet21k/ViT-B_16", "head", SGD),
    "swin": ("swin_tiny_patch4_window7_224", "swin/swin_tiny_patch4_window7_224", "all", ADAMW),
}
TRAIN_ONLY = {"head": ("(head|pre_logits)/.*",), "all": ()}


def get_config(arg: str = "vit") -> ConfigDict:
    """Returns the recipe for "vit" or "swin", and what is trained, "head" or "all"."""
    family, trained = base.choices(__file__, arg, MODELS, ("", *TRAIN_ONLY))
    name, init_from, by_default, optim = MODELS[family]
    return base.recipe(
        model={"name": name},
        init_from=init_from,
        data={"dataset": "./flower_photos", "holdout": 0.2, **parts.batches(8)},
        preprocess={"crop_fraction": 0.875},
        augment={"interpolation": "bilinear"},
        optim={
            "epochs": 10.0,
            "warmup_epochs": 0.0,
            "train_only": TRAIN_ONLY[trained or by_default],
            **optim,
        },
    )
