"""The flower_photos fine-tuning of the WZMIAOMIAO tutorials, ViT and Swin.

python train.py --config=configs/tutorial.py:vit --workdir=runs/flower_vit \
    --config.data.dataset=flower_photos
python train.py --config=configs/tutorial.py:swin --workdir=runs/flower_swin \
    --config.data.dataset=flower_photos

The dataset is the folder that flower_photos.tgz unpacks to: 3,670 images in five class folders, a
fifth of them held out. The tutorials freeze all of ViT but its head, and nothing of Swin:
vit,all and swin,head are the other ways round. Ten epochs, batch 8; they state no accuracy.
"""

from ml_collections import ConfigDict

from configs import base
from vitswin_jax.core.types import UserError

MODELS = {
    "vit": ("vit_base_patch16_224", "vit/imagenet21k/ViT-B_16", "head"),
    "swin": ("swin_tiny_patch4_window7_224", "swin/swin_tiny_patch4_window7_224", "all"),
}
HEAD = ("(head|pre_logits)/.*",)


def get_config(arg: str = "vit") -> ConfigDict:
    """Returns the recipe for "vit" or "swin", and what is trained, "head" or "all"."""
    family, _, trained = arg.partition(",")
    if family not in MODELS or trained not in ("", "head", "all"):
        raise UserError(
            f"configs/tutorial.py:{arg}: is vit or swin, and then head or all: 'vit,all'."
        )
    name, init_from, by_default = MODELS[family]
    config = base.get_config()
    with config.unlocked():
        config.model = base.model_section(name)
    config.init_from = init_from
    config.data.update(dataset="./flower_photos", holdout=0.2, batch_size=8, eval_batch_size=8)
    config.preprocess.update(crop_fraction=0.875)
    config.augment.update(interpolation="bilinear")
    config.optim.update(epochs=10.0, warmup_epochs=0.0)
    if family == "vit":
        config.optim.update(
            name="sgd",
            peak_lr=1e-3,
            end_lr=1e-5,
            schedule_unit="epoch",
            weight_decay=5e-5,
        )
    else:
        config.optim.update(peak_lr=1e-4, schedule="constant", weight_decay=0.05)
    if (trained or by_default) == "head":
        config.optim.train_only = HEAD
    return config.lock()
