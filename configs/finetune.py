"""Any weights fine-tuned on any images: a run, a file of any source, or a published name.

vitswin train finetune:swin/swin_tiny_patch4_window7_224 ./my_images --workdir=runs/mine

The argument is where it starts; the model, its sizes and how it is given images are the weights'
own. AdamW with layer-wise decay, 20 epochs, batch 64: a starting point, not a published recipe.
`--model.img_size` resizes; `--lora.rank=8` trains adapters alone. Expected: depends
on the images; a few hundred a class are enough.
"""

from ml_collections import ConfigDict

from configs import base
from vitswin_jax import load_metadata
from vitswin_jax.core.types import UserError
from vitswin_jax.models.variants import VARIANTS


def get_config(weights: str = "") -> ConfigDict:
    """Returns the recipe for a model of its weights; raises UserError where there are none."""
    if not weights:
        raise UserError(
            "configs/finetune.py: the argument is the weights to start from, a file, a run's "
            "workdir or a published name, such as finetune:runs/digits."
        )
    metadata = load_metadata(weights)
    stated = VARIANTS.get(metadata.name, ("", {}))[1]
    own = {key: metadata.fields[key] for key in stated if metadata.fields[key] != stated[key]}
    return base.recipe(
        model={"name": metadata.name, **own, "drop_path_rate": 0.1},
        init_from=weights,
        data={"dataset": "./images", "batch_size": 64, "eval_batch_size": 64},
        augment={"label_smoothing": 0.1},
        optim={
            "epochs": 20.0,
            "warmup_epochs": 2.0,
            "peak_lr": 2e-4,
            "end_lr": 1e-6,
            "weight_decay": 0.05,
            "max_grad_norm": 1.0,
            "layer_decay": 0.75,
        },
    )
