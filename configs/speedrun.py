"""A ViT or a Swin on Fashion-MNIST, from scratch, in 30 minutes of two CPU cores.

vitswin train speedrun:fashion,vit --minutes 30 --data.dataset=FOLDER --workdir=runs/vit
vitswin train speedrun:fashion,swin --minutes 30 --data.dataset=FOLDER --workdir=runs/swin

The argument is DATASET,FAMILY. Without FOLDER the dataset is the one that TFDS has prepared.
`python benchmarks/speedrun.py` writes the folder, does these runs with several seeds and prints
their table; docs/records.md has the results.
"""

from ml_collections import ConfigDict

from configs import base

DATA = {  # a dataset of TFDS; mean and deviation are of its training pixels, in [0, 1]
    "fashion": {
        "data": {"dataset": "fashion_mnist"},
        "preprocess": {"mean": (0.286,), "std": (0.353,)},
        "augment": {"crop": "shift", "shift": 0.08, "flip": True},
    },
}
IMAGES = {"img_size": 28, "in_chans": 1}
MODELS = {
    "vit": {
        "stem": (24, 48, 48, 96),
        "patch_size": 4,
        "embed_dim": 96,
        "depth": 3,
        "num_heads": 3,
        "class_token": False,
        "global_pool": "avg",
    },
    "swin": {
        "stem": (32, 48),
        "patch_size": 2,
        "embed_dim": 48,
        "depths": (2, 4),
        "num_heads": (2, 4),
        "window_size": 7,
        "init_std": 0.15,
    },
}
EPOCHS = {"vit": 20.0, "swin": 20.0}
"""The length without `--minutes`."""


def get_config(arg: str = "fashion,vit") -> ConfigDict:
    """Returns the recipe of a dataset and a family; raises UserError for an unknown one."""
    dataset, family = base.choices(__file__, arg, DATA, MODELS)
    return base.recipe(
        DATA[dataset],
        model={"name": family, **IMAGES, **MODELS[family]},
        data={"batch_size": 64, "eval_batch_size": 250},
        preprocess={"crop_mode": "squash", "crop_fraction": 1.0},
        augment={"label_smoothing": 0.1},
        optim={
            "name": "muon",
            "consistent_rms": 0.2,
            "peak_lr": 6e-3,
            "weight_decay": 0.05,
            "accum_steps": 4,  # parts of 16 images stay in a core's cache
            "accum_at_once": True,
            "epochs": EPOCHS[family],
            "warmup_epochs": 1.0,
            "max_grad_norm": 1.0,
        },
        ema={"decay": 0.998, "warmup": True},
        run={"log_steps": 50, "eval_epochs": 5.0, "checkpoint_epochs": 5.0},
    )
