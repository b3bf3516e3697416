"""What several recipes share: datasets, lengths in steps, and the augmentation of DeiT and Swin."""

from ml_collections import ConfigDict

IMAGENET_1K = "imagenet2012"
"""TFDS's name; a folder in the layout of ImageNet's archives does as well (docs/data.md)."""

IMAGENET_21K = "imagenet21k"
"""21,843 classes, which no library distributes: a dataset of one's own making."""

IMAGENET_22K = "imagenet22k"
"""The same without two empty classes, as Microsoft counts them."""


def take_steps(config: ConfigDict, total: int, *, warmup: int) -> None:
    """Gives the length of a run in steps, where `base` has epochs."""
    config.optim.update(epochs=0.0, total_steps=total, warmup_epochs=0.0, warmup_steps=warmup)


def augment_as_deit(config: ConfigDict) -> None:
    """Sets the augmentation of DeiT (arXiv:2012.12877, table 9), which Swin takes over.

    timm leaves colour jitter out where RandAugment is on, so both recipes have none.
    """
    config.augment.update(
        rand_augment="rand-m9-mstd0.5-inc1",
        erase_prob=0.25,
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        label_smoothing=0.1,
    )


def augment_as_inception(config: ConfigDict) -> None:
    """Sets the crop of Google's recipes: 5 to 100 % of the area, resized linearly, and a flip."""
    config.augment.update(scale=(0.05, 1.0), interpolation="bilinear")
