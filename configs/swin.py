"""Swin, Swin V2 and Swin-MLP on ImageNet-1k from scratch, as the official code trains them.

vitswin train swin:swin_tiny_patch4_window7_224 --workdir=runs/swin_t
vitswin train swin:swinv2_tiny_window8_256 --workdir=runs/swinv2_t

Batch 1024, 300 epochs (its configs/swin, swinv2 and swinmlp). Expected, in percent: Swin T 81.2,
S 83.2, B 83.5, T/C24 at 256 81.6; Swin V2 at 256 with windows of 8 T 81.8, S 83.7, B 84.2, with
windows of 16 82.8, 84.1, 84.6; Swin-MLP T/C24 79.4, T/C12 79.6, T/C6 79.7, B 81.3.
"""

from ml_collections import ConfigDict

from configs import base, parts
from vitswin_jax.core.choices import one_of

DROP_PATH = {"tiny": 0.2, "small": 0.3, "base": 0.5}


def get_config(name: str = "swin_tiny_patch4_window7_224") -> ConfigDict:
    """Returns the recipe for one model; raises UserError for a size that has none."""
    words = name.split("_") if name.startswith("swin") else []
    size = next((word for word in words if word in DROP_PATH), None)
    drop_path_rate = one_of(f"configs/swin.py:{name}: the size of a Swin", size, DROP_PATH)
    return base.recipe(
        parts.on_imagenet_1k(1024),
        parts.AS_DEIT,
        parts.every(5.0),
        model={"name": name, "drop_path_rate": drop_path_rate},
        optim={
            "epochs": 300.0,
            "warmup_epochs": 20.0,
            "warmup_lr": 1e-6,
            "peak_lr": 1e-3,
            "end_lr": 1e-5,
            "weight_decay": 0.05,
            "max_grad_norm": 5.0,
        },
    )
