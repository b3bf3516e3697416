"""Every key of every section, with its type and its default; recipes change some of them.

Each section goes whole to the function named beside it, so that a key is used or raises. `None` is
a placeholder: the key has a type and no value.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vitswin_jax.core.choices import one_of
from vitswin_jax.core.types import UserError
from vitswin_jax.models.registry import model_kwargs, optional_types
from vitswin_jax.train.run.plan import GIVE_WAY, UNITS, Count, of_recipe


def _data() -> dict[str, object]:
    """Data for training and testing (train.run.inputs.open_data; docs/data.md)."""
    return {
        "dataset": "digits",  # a folder, a table, shards, hf:NAME, a TFDS name: docs/data.md
        "data_dir": placeholder(str),  # where TFDS datasets are prepared; None: TFDS's default
        "train_split": "train",  # or a part of one, "train[:90%]"
        "test_split": "test",
        "holdout": 0.25,  # the test part of what is not already divided
        "outside_files": False,  # True: a table may name files outside its folder, or a store's
        "class_weights": placeholder(object),  # None, "balanced", or one for each class
        "img_sizes": (),  # of training, by epoch: ((0, 128), (20, 160)); (): model.img_size
        "batch_size": 128,  # global, over all devices
        "eval_batch_size": 128,
        "workers": -1,  # processes that decode and augment; -1: automatic, 0: threads of this one
        "on_unreadable": "raise",  # or "skip": counted, and left out of the batch
    }


def _preprocess() -> dict[str, object]:
    """The preprocessing of evaluation (data.augment.transforms.Preprocess).

    None: as the weights of init_from were trained, without them as the family's originals.
    """
    return {
        "mean": placeholder(tuple),
        "std": placeholder(tuple),
        "crop_fraction": placeholder(float),
        "crop_mode": placeholder(str),
        "interpolation": placeholder(str),
    }


def _augment() -> dict[str, object]:
    """The augmentation of training images (docs/augment.md).

    Read by data.augment.transforms, train.task.erasing and train.task.mixing; `repeats`
    by data.pipeline.
    """
    return {
        "crop": "random_resized",  # "random_resized", "random", "shift", "none"
        "scale": (0.08, 1.0),  # of the area, for "random_resized"
        "ratio": (3 / 4, 4 / 3),  # width / height of the part
        "crop_fraction": 0.875,  # of the resized image's shorter side, for "random"
        "shift": 0.1,  # of height and width, for "shift"
        "rotate": 0.0,  # degrees either way
        "zoom": 0.0,  # 0.1: up to 1.1 times larger or smaller
        "flip": True,  # half of the images
        "interpolation": "bicubic",
        "resizer": "opencv",  # or "pillow": the originals' pixels, more slowly
        "reduced_decode": True,  # JPEGs whose crop shrinks by 2 or more
        "rand_augment": placeholder(str),  # "rand-m9-mstd0.5-inc1", "randaug(2,15)"
        "auto_augment": placeholder(str),  # "original", "originalr", "v0", "v0r", "3a"
        "color_jitter": 0.0,  # of brightness, contrast, saturation
        "hue": 0.0,  # in turns, up to 0.5
        "grayscale": 0.0,  # probability
        "repeats": 1,  # of each image in its batch, each augmented anew
        "erase_prob": 0.0,
        "erase_mode": "pixel",  # "pixel", "rand", "const"
        "erase_count": 1,  # boxes at most
        "erase_area": (0.02, 1 / 3),  # of the image
        "erase_aspect": 0.3,  # the longest box; at most 1
        "mixup_alpha": 0.0,  # 0: off
        "cutmix_alpha": 0.0,  # 0: off
        "mix_prob": 1.0,
        "switch_prob": 0.5,  # of cutmix where both are on
        "mix_mode": "batch",  # "batch", "pair", "element"
        "label_smoothing": 0.0,
    }


def _loss() -> dict[str, object]:
    """Loss function (train.task.losses, train.run.prepare.build_objective)."""
    return {
        "name": "softmax",  # or another of train.task.losses.LOSSES
        "head_bias_init": 0.0,  # of a fresh head; with sigmoid, log of 1 / classes or so
        "aux_weight": 0.01,  # of what a model sows besides: Swin-MoE's balance of its experts
    }


def _optim() -> dict[str, object]:
    """Optimizer, rate and length (train.run.plan, train.optim.optimizers; docs/optim.md)."""
    return {
        "name": "adamw",  # or another of train.optim.optimizers.OPTIMIZERS
        "peak_lr": 1e-3,  # for this batch size; nothing rescales it
        "weight_decay": 0.05,  # kernels only
        "max_grad_norm": placeholder(float),
        "accum_steps": 1,
        # The rule's own; None: its default. One that it does not read raises.
        "b1": placeholder(float),
        "b2": placeholder(float),
        "eps": placeholder(float),
        "momentum": placeholder(float),
        "nesterov": placeholder(bool),
        "momentum_dtype": placeholder(str),  # of the first moment: "float32", "bfloat16"
        "consistent_rms": placeholder(float),
        # The schedule, and the run's length. Each count in one of three units, the others 0.
        "schedule": "cosine",  # "cosine", "linear", "rsqrt", "multistep", "constant"
        "schedule_unit": "step",  # "epoch": the rate changes once an epoch
        "warmup_lr": 0.0,
        "end_lr": 0.0,
        "warmup_prefix": True,  # the decay begins after the warmup
        "gamma": placeholder(float),  # of "multistep"; None: 0.1
        "epochs": 100.0,
        "total_steps": placeholder(int),
        "examples": placeholder(int),
        # A recipe's warmup and cooldown take at most a quarter of the run, unless set by hand.
        "warmup_epochs": placeholder(float),
        "warmup_steps": placeholder(int),
        "warmup_examples": placeholder(int),
        "cooldown_epochs": placeholder(float),
        "cooldown_steps": placeholder(int),
        "cooldown_examples": placeholder(int),
        "timescale_epochs": placeholder(float),  # of "rsqrt"; None: 10,000 steps
        "timescale_steps": placeholder(int),
        "timescale_examples": placeholder(int),
        "milestone_epochs": (),  # of "multistep"
        "milestone_steps": (),
        "milestone_examples": (),
        # Tables of (pattern of a parameter's path, number), and patterns; the first rules.
        "lr_mults": (),
        "decay_mults": (),
        "freeze": (),
        "train_only": (),  # where there are any, nothing else trains
        "layer_decay": placeholder(float),
    }


def _pretrain() -> dict[str, object]:
    """Learning without labels (models.pretraining.create_pretraining; docs/pretrain.md)."""
    return {
        "method": placeholder(str),  # "simmim", "mae"; None: labels are learned
        # The method's own; None: its default. One that it does not read raises.
        "mask_ratio": placeholder(float),
        "mask_patch": placeholder(int),  # simmim: the side of what is hidden or not, in pixels
        "norm_window": placeholder(int),  # simmim: targets by the square around each pixel
        "norm_pix": placeholder(bool),  # mae: targets by their patch
        "decoder_dim": placeholder(int),  # mae, as the next two
        "decoder_depth": placeholder(int),
        "decoder_heads": placeholder(int),
        # Probes of the encoder's features by labels, if there are any (evaluate.probes).
        "probe_every": 1,  # in evaluations; 0: never
        "probe_images": 10_000,  # of the training images, that the probes learn from
    }


def _distill() -> dict[str, object]:
    """A teacher (train.run.prepare.make_distillation)."""
    return {
        "teacher": placeholder(str),  # weights of any source, of the data's classes; None: off
        "kind": "hard",  # or "soft"
        "alpha": 0.5,  # the teacher's share of the loss
        "temperature": 1.0,
    }


def _ema() -> dict[str, object]:
    """The average of what is trained (train.optim.ema.make_ema)."""
    return {
        "decay": placeholder(float),  # None: no average; DeiT: 0.99996
        "warmup": False,  # lower decays at first
        "evaluate": True,  # evaluate and save the average, or else the parameters
    }


def _lora() -> dict[str, object]:
    """Adapters (train.optim.lora.make_lora); patterns are of whole paths of parameters."""
    return {
        "rank": placeholder(int),  # None: every parameter is trained
        "alpha": 16.0,  # adapters are scaled by alpha / rank
        "kernels": r"(.*/)?(attn/(qkv|proj)|mlp/fc[12])/kernel",  # what is adapted
        "train": r"head(_dist)?/.*",  # what is trained besides
    }


def _mesh() -> dict[str, object]:
    """The axes that multiply to the devices (train.sharding.create_mesh)."""
    return {
        "data": -1,  # copies of the model; -1, for one axis: all remaining devices
        "fsdp": 1,  # devices that divide a copy's parameters, and the batch
        "tensor": 1,  # devices that divide heads, hidden channels and experts
    }


def _run() -> dict[str, object]:
    """Cadences, each in one unit, the others 0 (train.run.plan.make_plan)."""
    return {
        "log_steps": 50,
        "log_epochs": placeholder(float),
        "log_examples": placeholder(int),
        "eval_epochs": 1.0,
        "eval_steps": placeholder(int),
        "eval_examples": placeholder(int),
        "checkpoint_epochs": 1.0,
        "checkpoint_steps": placeholder(int),
        "checkpoint_examples": placeholder(int),
        "keep_checkpoints": 2,  # the newest
        "keep_best": 0,  # in test accuracy besides; where it is above 0 every evaluation saves
        "keep_every_epochs": placeholder(float),  # never deleted
        "keep_every_steps": placeholder(int),
        "keep_every_examples": placeholder(int),
        "patience": placeholder(int),  # evaluations without a better one that end the run
        "final": "last",  # or "best": of the checkpoints, the one whose weights the run ends with
    }


SECTIONS = {
    "data": _data,
    "preprocess": _preprocess,
    "augment": _augment,
    "loss": _loss,
    "optim": _optim,
    "pretrain": _pretrain,
    "distill": _distill,
    "ema": _ema,
    "lora": _lora,
    "mesh": _mesh,
    "run": _run,
}


def get_config() -> ConfigDict:
    """Returns the defaults, locked: a misspelt key raises, a wrong type raises."""
    config = ConfigDict()
    config.seed = 0
    # A weights file of any source, a run's workdir or a name: what the run starts from, by the
    # rules of train.run.start. Without it parameters are drawn.
    config.init_from = placeholder(str)
    # The workdir of a run with the same test split: the report shows its results beside this one's.
    config.compare_to = placeholder(str)
    # Free text, kept with the run.
    config.notes = placeholder(str)
    # Where the numbers go besides metrics.jsonl: "tensorboard", "wandb", "mlflow", "trackio".
    config.loggers = ("tensorboard",)
    # The project of W&B and trackio, the experiment of MLflow; None: of their own environment
    # variables, or "vitswin_jax".
    config.project = placeholder(str)
    # "fp8" or "int8": 8-bit products of linear layers in training (nn.quantized; docs/train.md).
    config.quantize = "none"
    for name, section in SECTIONS.items():
        config[name] = ConfigDict(section())
    config.optim.warmup_epochs = of_recipe(5.0)
    return config.lock()


def model_section(name: str, **fields: object) -> ConfigDict:
    """Returns `config.model`: every field of the model called `name`, `fields` in place of its own.

    `num_classes` None means as many as the dataset has, and `dtype` "auto" bfloat16 on accelerators
    and float32 on CPU (train.run.dtype).
    """
    values = model_kwargs(name) | {"num_classes": None, "dtype": "auto"} | fields
    types = {"num_classes": int} | optional_types(name)
    typed = {
        key: placeholder(types[key]) if value is None else value for key, value in values.items()
    }
    return ConfigDict({"name": name} | typed)


def recipe(
    *parts: Mapping[str, object], model: Mapping[str, object], **changes: object
) -> ConfigDict:
    """Returns the defaults with a model and with changes, locked.

    `model` has a "name" and the fields that are not the named model's own. A change of a section is
    a dict of its keys, `optim={"peak_lr": 1e-3}`. `parts` are dicts of sections and come first, so
    that a later part, and then `changes`, wins. A misspelt key or a wrong type raises.
    """
    config = get_config()
    with config.unlocked():
        config.model = model_section(**model)
    for part in (*parts, changes):
        config.update(part)
    for key in (Count("optim", what).key(unit) for what in GIVE_WAY for unit in UNITS):
        if config.optim[key]:
            config.optim[key] = of_recipe(config.optim[key])
    return config


def choices(file: str, arg: str, *tables: Iterable[str]) -> list[str]:
    """Returns the parts of a recipe's argument "A,B", one of each table.

    `file` is the recipe's `__file__`. A part that is left out is the first of its table. Raises
    UserError for a part that is not in its table.
    """
    name, parts = f"configs/{Path(file).stem}.py", arg.split(",")
    if len(parts) > len(tables):
        raise UserError(f"{name}:{arg}: the argument has at most {len(tables)} part(s).")
    for i, (part, table) in enumerate(zip(parts, tables, strict=False), start=1):
        one_of(f"{name}:{arg}: part {i}", part, table)
    return parts + [next(iter(table)) for table in tables[len(parts) :]]
