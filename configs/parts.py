"""Parts of several recipes: datasets, lengths in steps, augmentations, big_vision's optimizer."""

IMAGENET_1K = "imagenet2012"
"""TFDS's name; a folder in the layout of ImageNet's archives does as well (docs/data.md)."""

IMAGENET_21K = "imagenet21k"
"""21,843 classes, which no library distributes: a dataset of one's own making."""

IMAGENET_22K = "imagenet22k"
"""The same without two empty classes, as Microsoft counts them."""


AS_DEIT = {
    "augment": {
        "rand_augment": "rand-m9-mstd0.5-inc1",
        "erase_prob": 0.25,
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "label_smoothing": 0.1,
    }
}
"""The augmentation of DeiT (arXiv:2012.12877, table 9), which Swin takes over.

timm leaves colour jitter out where RandAugment is on, so both recipes have none.
"""

AS_INCEPTION = {
    "augment": {"scale": (0.05, 1.0), "interpolation": "bilinear"},
    "preprocess": {"crop_fraction": 0.875, "interpolation": "bilinear"},
}
"""How Google's recipes see images: 5 to 100 % of the area, and to evaluate 224 of 256."""


def every(eval_epochs: float, checkpoint_epochs: float = 1.0) -> dict[str, dict[str, float]]:
    """Returns how often a run evaluates and saves."""
    return {"run": {"eval_epochs": eval_epochs, "checkpoint_epochs": checkpoint_epochs}}


def take_steps(total: int, *, warmup: int) -> dict[str, dict[str, object]]:
    """Returns the length of a run in steps, where `base` has epochs."""
    length = {"epochs": 0.0, "total_steps": total, "warmup_epochs": 0.0, "warmup_steps": warmup}
    return {"optim": length}


def on_imagenet_1k(
    batch_size: int, *, train_split: str = "train", eval_batch_size: int = 1024
) -> dict[str, dict[str, object]]:
    """Returns ImageNet-1k, tested on its validation images, for its test split has no labels."""
    data = {"dataset": IMAGENET_1K, "train_split": train_split, "test_split": "validation"}
    return {"data": data | batches(batch_size, eval_batch_size)}


def batches(batch_size: int, eval_batch_size: int | None = None) -> dict[str, int]:
    """Returns both batch sizes, equal unless both are given."""
    return {"batch_size": batch_size, "eval_batch_size": eval_batch_size or batch_size}


def as_big_vision(epochs: float) -> dict[str, dict[str, object]]:
    """Returns big_vision's Adam for ViTs on ImageNet: its moments' types, decay, clip, warmup."""
    return {
        "optim": {
            "name": "big_vision_adam",
            "momentum_dtype": "bfloat16",
            "epochs": epochs,
            "warmup_epochs": 0.0,
            "warmup_steps": 10_000,
            "peak_lr": 1e-3,
            "weight_decay": 1e-4,
            "max_grad_norm": 1.0,
        }
    }
