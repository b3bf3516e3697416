"""Every key of every section, with its type and its default; recipes change some of them.

A section is passed as a whole to the function that its docstring names, so that a key that nothing
reads raises. A placeholder has a type, and None as its value.
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
        "holdout": 0.25,  # in (0, 1): the test share of a dataset without splits
        "outside_files": False,  # True: a table may name files outside its folder, or a store's
        "class_weights": placeholder(object),  # None, "balanced", or a number for each class
        "img_sizes": (),  # pixels by epoch, ((0, 128), (20, 160)); (): always model.img_size
        "batch_size": 128,  # images per step, over all devices
        "eval_batch_size": 128,
        "workers": -1,  # processes that decode and augment; -1: automatic, 0: threads
        "on_unreadable": "raise",  # or "skip": unreadable images are logged and left out
    }


def _preprocess() -> dict[str, object]:
    """The preprocessing of evaluation (data.augment.transforms.Preprocess).

    None: as for the weights of init_from, or else as in the originals of the family.
    """
    return {
        "mean": placeholder(tuple),  # of pixels in [0, 1], per channel
        "std": placeholder(tuple),
        "crop_fraction": placeholder(float),  # in [0.05, 1]
        "crop_mode": placeholder(str),  # "center", "squash", "squash_crop"
        "interpolation": placeholder(str),  # "bicubic", "bilinear", ...
    }


def _augment() -> dict[str, object]:
    """The augmentation of training images (docs/augment.md).

    Read by data.augment.transforms, train.task.erasing and train.task.mixing; `repeats`
    by data.pipeline.
    """
    return {
        "crop": "random_resized",  # "random_resized", "random", "shift", "none"
        "scale": (0.08, 1.0),  # share of the area, for "random_resized"
        "ratio": (3 / 4, 4 / 3),  # width / height of the crop, for "random_resized"
        "crop_fraction": 0.875,  # the crop's share of the shorter side, for "random"
        "shift": 0.1,  # at most this share of height and width, for "shift"
        "rotate": 0.0,  # at most, in degrees
        "zoom": 0.0,  # 0.1: up to 1.1 times larger or smaller
        "flip": True,  # mirror half of the images left to right
        "interpolation": "bicubic",
        "resizer": "opencv",  # or "pillow": the originals' pixels, more slowly
        "reduced_decode": True,  # decode a JPEG smaller if its crop shrinks by 2 or more
        "rand_augment": placeholder(str),  # "rand-m9-mstd0.5-inc1", "randaug(2,15)"
        "auto_augment": placeholder(str),  # "original", "originalr", "v0", "v0r", "3a"
        "color_jitter": 0.0,  # largest relative change of brightness, contrast, saturation
        "hue": 0.0,  # largest turn of the hue, in [0, 0.5]
        "grayscale": 0.0,  # probability that an image becomes grey
        "local_crops": 0,  # dino: small views of each image, besides two whole ones
        "local_size": placeholder(int),  # dino: side of a small view, in pixels
        "local_scale": (0.05, 0.4),  # dino: share of the area of a small view
        "blur": (0.0, 0.0, 0.0),  # dino: probabilities for 1st and 2nd whole view, small views
        "solarize": (0.0, 0.0, 0.0),  # dino: probabilities in the same order
        "repeats": 1,  # copies of each image in a batch, each augmented differently
        "erase_prob": 0.0,  # probability of random erasing, per image
        "erase_mode": "pixel",  # fill: "pixel" (noise), "rand" (a colour), "const" (0)
        "erase_count": 1,  # largest number of boxes
        "erase_area": (0.02, 1 / 3),  # share of the image's area, per box
        "erase_aspect": 0.3,  # smallest height / width of a box, in (0, 1]
        "mixup_alpha": 0.0,  # of the Beta distribution; 0: off
        "cutmix_alpha": 0.0,  # of the Beta distribution; 0: off
        "mix_prob": 1.0,  # probability that images are mixed
        "switch_prob": 0.5,  # probability of cutmix, if both kinds are on
        "mix_mode": "batch",  # one draw per "batch", "pair" or "element"
        "label_smoothing": 0.0,  # in [0, 1)
    }


def _loss() -> dict[str, object]:
    """Loss function (train.task.losses, train.run.prepare.build_objective)."""
    return {
        "name": "softmax",  # or another of train.task.losses.LOSSES
        "head_bias_init": 0.0,  # of a new head; with sigmoid, about log(1 / classes)
        "aux_weight": 0.01,  # weight of the model's own loss: Swin-MoE's balance of experts
    }


def _optim() -> dict[str, object]:
    """Optimizer, learning rate, length (train.run.plan, train.optim.optimizers; docs/optim.md)."""
    return {
        "name": "adamw",  # or another of train.optim.optimizers.OPTIMIZERS
        "peak_lr": 1e-3,  # learning rate after the warmup; the batch size does not rescale it
        "weight_decay": 0.05,  # of kernels only, by default
        "max_grad_norm": placeholder(float),  # clips the global norm of the gradients; None: off
        "accum_steps": 1,  # parts in which a batch is computed
        "accum_at_once": False,  # at the same time: on CPUs faster for small images, more memory
        # Keys of the optimizer; None: its default. A key that it does not read raises.
        "b1": placeholder(float),
        "b2": placeholder(float),
        "eps": placeholder(float),
        "momentum": placeholder(float),
        "nesterov": placeholder(bool),
        "momentum_dtype": placeholder(str),  # dtype of the first moment: "float32", "bfloat16"
        "consistent_rms": placeholder(float),
        # The schedule, and the run's length. Set each count in one of three units, the others 0.
        "schedule": "cosine",  # "cosine", "linear", "rsqrt", "multistep", "constant"
        "schedule_unit": "step",  # "epoch": the learning rate changes once per epoch
        "warmup_lr": 0.0,  # learning rate at step 0
        "end_lr": 0.0,  # learning rate at the end
        "warmup_prefix": True,  # the decay begins after the warmup; False: at step 0
        "gamma": placeholder(float),  # factor at each milestone of "multistep"; None: 0.1
        "epochs": 100.0,  # length of the run
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
        "milestone_epochs": (),  # of "multistep", such as (30.0, 60.0)
        "milestone_steps": (),
        "milestone_examples": (),
        # Patterns are regular expressions of whole parameter paths; the first that matches counts.
        "lr_mults": (),  # ((pattern, factor of the learning rate), ...)
        "decay_mults": (),  # ((pattern, factor of the weight decay), ...)
        "freeze": (),  # patterns of parameters that do not train
        "train_only": (),  # patterns of parameters that train; all others do not
        "layer_decay": placeholder(float),  # in (0, 1]: factor of the rate per layer; None: off
    }


def _pretrain() -> dict[str, object]:
    """Pre-training without labels (models.pretraining.create_pretraining; docs/pretrain.md)."""
    return {
        "method": placeholder(str),  # "simmim", "mae", "dino"; None: supervised training
        # Keys of the method; None: its default. A key that it does not read raises.
        "mask_ratio": placeholder(float),  # share of masked patches, in (0, 1)
        "mask_patch": placeholder(int),  # simmim: side of a masked square, in pixels
        "norm_window": placeholder(int),  # simmim: side of the square that normalises a target
        "norm_pix": placeholder(bool),  # mae: targets are normalised per patch
        "decoder_dim": placeholder(int),  # mae: channels of the decoder
        "decoder_depth": placeholder(int),  # mae: blocks of the decoder
        "decoder_heads": placeholder(int),  # mae: heads of the decoder
        "out_dim": placeholder(int),  # dino, like all keys below: outputs of the head
        "hidden_dim": placeholder(int),  # channels of the head's hidden layers
        "bottleneck_dim": placeholder(int),  # channels before the head's last layer
        "momentum": placeholder(float),  # decay of the teacher's average at first; rises to 1
        "student_temp": placeholder(float),  # temperature of the student's softmax
        "teacher_temp": placeholder(float),  # temperature of the teacher's softmax
        "warmup_teacher_temp": placeholder(float),  # the teacher's temperature at first
        "warmup_teacher_temp_epochs": placeholder(float),  # length of its warmup
        "freeze_last_layer_epochs": placeholder(float),  # how long the head's last layer waits
        "centering": placeholder(str),  # "mean", "sinkhorn"
        "center_momentum": placeholder(float),  # decay of the running mean of "mean"
        "patch_weight": placeholder(float),  # weight of iBOT's loss of masked patches; 0: off
        "shared_head": placeholder(bool),  # masked patches have the same head
        "mask_prob": placeholder(float),  # probability that a whole view has masked patches
        "koleo_weight": placeholder(float),  # weight of KoLeo's loss; 0: off
        # k-NN and linear probe of the features, if the data have labels (evaluate.probes).
        "probe_every": 1,  # every N evaluations; 0: never
        "probe_images": 10_000,  # number of training images that the probes learn from
    }


def _distill() -> dict[str, object]:
    """Distillation from a teacher (train.run.distil.make_distillation; docs/finetune.md)."""
    return {
        "teacher": placeholder(str),  # weights with the classes of the data, or any; None: off
        "kind": "hard",  # the teacher's class, or "soft": its probabilities
        "alpha": 0.5,  # the teacher's share of the loss, in [0, 1]; features, 1: without labels
        "temperature": 1.0,  # of "soft", above 0
        "features": placeholder(str),  # "token", "patches", "both", of any teacher; None: logits
        "loss": "cosine",  # of features: "cosine", "smooth_l1"
        "beta": 1.0,  # of "smooth_l1": the difference from which it is linear, above 0
    }


def _ema() -> dict[str, object]:
    """Exponential moving average (EMA) of the trained parameters (train.optim.ema.make_ema)."""
    return {
        "decay": placeholder(float),  # in [0, 1); None: no average; DeiT: 0.99996
        "warmup": False,  # the decay of step n is at most (1 + n) / (10 + n)
        "evaluate": True,  # evaluate and save the average; False: the parameters
    }


def _lora() -> dict[str, object]:
    """Low-rank adapters (train.optim.lora.make_lora); patterns match whole parameter paths."""
    return {
        "rank": placeholder(int),  # None: no adapters
        "alpha": 16.0,  # adapters are multiplied by alpha / rank
        "kernels": r"(.*/)?(attn/(qkv|proj)|mlp/fc[12])/kernel",  # kernels with adapters
        "train": r"head(_dist)?/.*",  # other parameters that train
    }


def _mesh() -> dict[str, object]:
    """Sizes of the mesh axes, which multiply to the devices (train.sharding.create_mesh)."""
    return {
        "slices": placeholder(int),  # groups of devices with fast links; None: as found
        "data": -1,  # copies of the model; -1: all remaining devices (for one axis)
        "fsdp": 1,  # devices that divide a copy's parameters, and the batch
        "tensor": 1,  # devices that divide heads, hidden channels and experts
    }


def _run() -> dict[str, object]:
    """Intervals, each in one of three units, the others 0 (train.run.plan.make_plan)."""
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
        "keep_checkpoints": 2,  # number of newest checkpoints that are kept
        "keep_best": 0,  # number of best ones (test accuracy); above 0, every evaluation saves
        "keep_every_epochs": placeholder(float),  # these are never deleted
        "keep_every_steps": placeholder(int),
        "keep_every_examples": placeholder(int),
        "patience": placeholder(int),  # end after N evaluations without a better one; None: off
        "final": "last",  # or "best": the checkpoint that becomes model.safetensors
        "local_dir": "",  # folder on each host's own disk for more frequent saves; "": none
        "local_seconds": 60.0,  # interval of these saves (docs/hosts.md)
        "local_copies": True,  # of several hosts, a neighbour of each keeps its saves too
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
    # Weights to start from: a file of any source, a run's workdir or a published name
    # (train.run.reconcile). None: parameters are drawn at random.
    config.init_from = placeholder(str)
    # The workdir of a run with the same test split, which the report compares with this run.
    config.compare_to = placeholder(str)
    # Free text that is kept with the run.
    config.notes = placeholder(str)
    # Loggers besides metrics.jsonl: "tensorboard", "wandb", "mlflow", "trackio".
    config.loggers = ("tensorboard",)
    # The project of W&B and trackio, the experiment of MLflow. None: their own environment
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
