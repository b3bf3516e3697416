"""Pre-training without labels on the handwritten digits, a minute or two each on a CPU.

python train.py --config=configs/mim_digits.py:simmim,swin --workdir=runs/simmim
python train.py --config=configs/mim_digits.py:mae,vit --workdir=runs/mae

The argument is METHOD,FAMILY: simmim with vit or swin, mae with vit. The report shows what was
hidden and what was painted there. A fine-tuning run takes the workdir as its init_from
(docs/pretrain.md).
"""

from ml_collections import ConfigDict

from configs import base, digits
from vitswin_jax.core.types import UserError

ARGUMENTS = ("simmim,vit", "simmim,swin", "mae,vit")
SIMMIM = {"mask_patch": 4}
# Positions are given, as MAE's are: tables that begin near 0 take long to learn (docs/pretrain.md).
SIMMIM_FIELDS = {"vit": {"pos_embed": "sincos2d"}, "swin": {}}
MAE = {"decoder_dim": 64, "decoder_depth": 2, "decoder_heads": 4, "norm_pix": False}


def get_config(arg: str = "simmim,swin") -> ConfigDict:
    """Returns the recipe of a method and a family; raises UserError for others than there are."""
    if arg not in ARGUMENTS:
        raise UserError(
            f"configs/mim_digits.py:{arg}: the argument is one of {' or '.join(ARGUMENTS)}."
        )
    method, family = arg.split(",")
    fields = digits.MODELS[family] | (SIMMIM_FIELDS[family] if method == "simmim" else {})
    config = base.get_config()
    with config.unlocked():
        config.model = base.model_section(family, **fields)
    config.data.batch_size = 64
    config.pretrain.update(method=method, **(SIMMIM if method == "simmim" else MAE))
    config.preprocess.update(
        mean=digits.HALF, std=digits.HALF, crop_mode="squash", crop_fraction=1.0
    )
    config.augment.update(crop="shift", shift=0.1, rotate=12.0, zoom=0.1, flip=False)
    config.optim.update(peak_lr=1e-3, epochs=100.0, warmup_epochs=5.0, max_grad_norm=1.0)
    config.run.update(log_steps=50, eval_epochs=10.0, checkpoint_epochs=10.0)
    return config.lock()
