"""Pre-training without labels on the handwritten digits, a minute or two each on a CPU.

vitswin train mim_digits:simmim,swin --workdir=runs/simmim
vitswin train mim_digits:mae,vit --workdir=runs/mae
vitswin train mim_digits:dino,vit --workdir=runs/dino

The argument is METHOD,FAMILY: simmim and dino with vit or swin, mae with vit. The report shows what
was hidden and what was painted there, or, of dino, where the model looks. A fine-tuning run takes
the workdir as its init_from (docs/pretrain.md).
"""

from ml_collections import ConfigDict

from configs import base, digits

SIMMIM = {"mask_patch": 4}
# Positions are given, as MAE's are: tables that begin near 0 take long to learn (docs/pretrain.md).
SIMMIM_FIELDS = {"vit": {"pos_embed": "sincos2d"}, "swin": {}}
MAE = {"decoder_dim": 64, "decoder_depth": 2, "decoder_heads": 4, "norm_pix": False}

DINO = {
    "out_dim": 128,
    "hidden_dim": 256,
    "bottleneck_dim": 64,
    "momentum": 0.95,
    "teacher_temp": 0.03,
    "warmup_teacher_temp": 0.03,
    "koleo_weight": 0.1,
}
# Of a digit a small part shows nothing that is its own.
VIEWS = {"local_crops": 2, "local_size": 8, "local_scale": (0.3, 0.7)}
METHODS = {
    "simmim": {"pretrain": SIMMIM},
    "mae": {"pretrain": MAE},
    "dino": {"pretrain": DINO, "augment": VIEWS},
}


def get_config(arg: str = "simmim,swin") -> ConfigDict:
    """Returns the recipe of a method and a family; raises UserError for others than there are."""
    families = ("vit",) if arg.startswith("mae") else digits.MODELS
    method, family = base.choices(__file__, arg, METHODS, families)
    return base.recipe(
        digits.IMAGES,
        METHODS[method],
        model={
            "name": family,
            **digits.MODELS[family],
            **(SIMMIM_FIELDS[family] if method == "simmim" else {}),
        },
        data={"batch_size": 64},
        pretrain={"method": method},
        optim={"peak_lr": 1e-3, "epochs": 100.0, "warmup_epochs": 5.0, "max_grad_norm": 1.0},
        run={"log_steps": 50, "eval_epochs": 10.0, "checkpoint_epochs": 10.0},
    )
