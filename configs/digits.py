"""A ViT or a Swin on scikit-learn's handwritten digits: the quickstart, about two minutes on a CPU.

python train.py --config=configs/digits.py:vit --workdir=runs/vit
python train.py --config=configs/digits.py:swin --workdir=runs/swin

Expected: at least 98 % of the 450 held-out images, both.
"""

from ml_collections import ConfigDict

from configs import base

MODELS = {
    "vit": {"img_size": 16, "patch_size": 2, "embed_dim": 96, "depth": 6, "num_heads": 3},
    "swin": {
        "img_size": 16,
        "patch_size": 1,
        "embed_dim": 48,
        "depths": (2, 4),
        "num_heads": (2, 4),
        "window_size": 4,
    },
}


def get_config(family: str = "vit") -> ConfigDict:
    """Returns the recipe for one family."""
    config = base.get_config()
    with config.unlocked():
        config.model = base.model_section(family, drop_path_rate=0.1, **MODELS[family])
    config.data.batch_size = 64
    config.preprocess.update(crop_mode="squash", crop_fraction=1.0)
    config.augment.update(
        crop="shift", shift=0.1, rotate=12.0, zoom=0.1, flip=False, mixup_alpha=0.2
    )
    config.augment.label_smoothing = 0.1
    config.optim.update(peak_lr=1e-3, epochs=40.0, warmup_epochs=3.0, max_grad_norm=1.0)
    config.run.update(log_steps=20, eval_epochs=4.0, checkpoint_epochs=4.0)
    return config.lock()
