"""Swin and Swin V2, fine-tuned on ImageNet-1k as the official code does it (22k to 1k, 224 to 384).

vitswin train swin_finetune:swin_base_patch4_window7_224_22kto1k --workdir=runs/swin_b_22kto1k

The argument is one of the names in `RECIPES`: what its published result is called. Batch 1024, 30
epochs, 22k's rows of the head are mapped to 1k's. Expected, in percent: 22kto1k at 224 pixels T
80.9, S 83.2, B 85.2, L 86.3, at 384 B 86.4, L 87.3; B from 1k at 384 84.5; Swin V2 12to16 B 86.2,
L 86.9, 12to24 B 87.1, L 87.6.
"""

from ml_collections import ConfigDict

from configs import base, parts

RECIPES = {  # result -> (model, the weights it starts from, drop_path_rate)
    f"swin_{size}_patch4_window7_224_22kto1k": (
        f"swin_{size}_patch4_window7_224",
        f"swin/swin_{size}_patch4_window7_224_22k",
        0.1 if size == "tiny" else 0.2,
    )
    for size in ("tiny", "small", "base", "large")
}
RECIPES |= {
    f"swin_{size}_patch4_window12_384_22kto1k": (
        f"swin_{size}_patch4_window12_384",
        f"swin/swin_{size}_patch4_window12_384_22k",
        0.2,
    )
    for size in ("base", "large")
}
RECIPES["swin_base_patch4_window12_384"] = (
    "swin_base_patch4_window12_384",
    "swin/swin_base_patch4_window7_224",
    0.5,
)
RECIPES |= {
    f"swinv2_{size}_window12to{window}_192to{img_size}": (
        f"swinv2_{size}_window12to{window}_192to{img_size}",
        f"swinv2/swinv2_{size}_patch4_window12_192_22k",
        0.2,
    )
    for size in ("base", "large")
    for window, img_size in ((16, 256), (24, 384))
}


def get_config(result: str = "swin_base_patch4_window7_224_22kto1k") -> ConfigDict:
    """Returns the recipe of one published result; raises UserError for another."""
    (result,) = base.choices(__file__, result, RECIPES)
    name, init_from, drop_path_rate = RECIPES[result]
    whole = {"crop_fraction": 1.0, "crop_mode": "squash"}  # without a crop
    return base.recipe(
        parts.on_imagenet_1k(1024, eval_batch_size=512),
        parts.AS_DEIT,
        parts.every(1.0),
        model={"name": name, "drop_path_rate": drop_path_rate},
        init_from=init_from,
        preprocess=whole if name.endswith("384") else {},
        optim={
            "epochs": 30.0,
            "warmup_epochs": 5.0,
            "warmup_lr": 4e-8,
            "peak_lr": 4e-5,
            "end_lr": 4e-7,
            "weight_decay": 1e-8,
            "max_grad_norm": 5.0,
        },
    )
