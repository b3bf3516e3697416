"""What several recipes share: datasets, lengths in steps, augmentations, big_vision's optimizer."""

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


def use_imagenet_1k(
    config: ConfigDict, batch_size: int, *, train_split: str = "train", eval_batch_size: int = 1024
) -> None:
    """Trains on ImageNet-1k and tests on its validation images, of which there is no test split."""
    config.data.update(
        dataset=IMAGENET_1K,
        train_split=train_split,
        test_split="validation",
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        workers=8,
    )


def train_as_big_vision(config: ConfigDict, epochs: float) -> None:
    """Sets big_vision's Adam for ViTs on ImageNet: its moments' types, decay, clipping, warmup."""
    config.optim.update(
        name="big_vision_adam",
        momentum_dtype="bfloat16",
        epochs=epochs,
        warmup_epochs=0.0,
        warmup_steps=10_000,
        peak_lr=1e-3,
        weight_decay=1e-4,
        max_grad_norm=1.0,
    )


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
    """Sets how Google's recipes see images: 5 to 100 % of the area, and to evaluate 224 of 256."""
    config.augment.update(scale=(0.05, 1.0), interpolation="bilinear")
    config.preprocess.update(crop_fraction=0.875, interpolation="bilinear")
