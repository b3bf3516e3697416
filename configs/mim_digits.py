"""Pre-training without labels on the handwritten digits, a minute or two each on a CPU.

vitswin train mim_digits:simmim,swin --workdir=runs/simmim
vitswin train mim_digits:mae,vit --workdir=runs/mae

The argument is METHOD,FAMILY: simmim with vit or swin, mae with vit. The report shows what was
hidden and what was painted there. A fine-tuning run takes the workdir as its init_from
(docs/pretrain.md).
"""

from ml_collections import ConfigDict

from configs import base, digits

SIMMIM = {"mask_patch": 4}
# Positions are given, as MAE's are: tables that begin near 0 take long to learn (docs/pretrain.md).
SIMMIM_FIELDS = {"vit": {"pos_embed": "sincos2d"}, "swin": {}}
MAE = {"decoder_dim": 64, "decoder_depth": 2, "decoder_heads": 4, "norm_pix": False}


def get_config(arg: str = "simmim,swin") -> ConfigDict:
    """Returns the recipe of a method and a family; raises UserError for others than there are."""
    families = ("vit",) if arg.startswith("mae") else digits.MODELS
    method, family = base.choices(__file__, arg, ("simmim", "mae"), families)
    simmim = method == "simmim"
    return base.recipe(
        digits.IMAGES,
        model={
            "name": family,
            **digits.MODELS[family],
            **(SIMMIM_FIELDS[family] if simmim else {}),
        },
        data={"batch_size": 64},
        pretrain={"method": method, **(SIMMIM if simmim else MAE)},
        optim={"peak_lr": 1e-3, "epochs": 100.0, "warmup_epochs": 5.0, "max_grad_norm": 1.0},
        run={"log_steps": 50, "eval_epochs": 10.0, "checkpoint_epochs": 10.0},
    )
