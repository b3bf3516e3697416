"""Any model on a folder of class folders, from scratch (finetune.py starts from weights).

vitswin train folder:vit_tiny_patch16_224 ./my_images --workdir=runs/mine

The argument is a model's name (`vitswin models`). A starting point, not a published recipe: DeiT's
and Swin's augmentation and optimizer at a batch size that fits one device. Expected: depends on the
images; a few thousand are few for a transformer from scratch.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "vit_tiny_patch16_224") -> ConfigDict:
    """Returns the recipe for one model; the dataset has to be named on the command line."""
    return base.recipe(
        model={"name": name, "drop_path_rate": 0.1},
        data={"dataset": "./images", "batch_size": 64, "eval_batch_size": 64},
        augment={"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1},
        optim={
            "peak_lr": 5e-4,
            "epochs": 100.0,
            "warmup_epochs": 5.0,
            "end_lr": 1e-5,
            "max_grad_norm": 5.0,
        },
    )
