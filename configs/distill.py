"""Any model taught a teacher's features, on a folder of images whose labels it never sees.

vitswin train distill:vit_tiny_patch16_224 ./my_images --workdir=runs/student \
    --distill.teacher=dinov2_vits14/dinov2_vits14_pretrain.pth

The argument is a model's name (`vitswin models`). The teacher is any weights: a file, a run's
workdir, or a published name. The student learns its token and its patches, by their cosine. A
starting point, not a published recipe. Expected: depends on the teacher and the images.
"""

from ml_collections import ConfigDict

from configs import base

TAUGHT = {"features": "both", "loss": "cosine", "alpha": 1.0}
"""Features of both kinds, and no labels."""


def get_config(name: str = "vit_tiny_patch16_224") -> ConfigDict:
    """Returns the recipe for one model; the command line names the dataset and the teacher."""
    return base.recipe(
        model={"name": name},
        data={"dataset": "./images", "batch_size": 64, "eval_batch_size": 64},
        distill=TAUGHT,
        augment={"scale": (0.25, 1.0)},
        optim={
            "peak_lr": 1e-3,
            "epochs": 100.0,
            "warmup_epochs": 5.0,
            "end_lr": 1e-5,
            "max_grad_norm": 3.0,
        },
        run={"eval_epochs": 5.0, "checkpoint_epochs": 5.0},
    )
