"""Stands in for a recipe while a page is followed: a smaller model, trained for seconds.

`given.stand_in` copies this file over configs/NAME.py and keeps the recipe as configs/long_NAME.py.
The commands stay those of the pages.
"""

import importlib
from pathlib import Path

from ml_collections import ConfigDict

NAME = Path(__file__).stem
SMALLER = {
    "vit": {"model.embed_dim": 32, "model.depth": 2},
    "swin": {"model.embed_dim": 16, "model.depths": (2, 2)},
}
BRIEF = {"optim.epochs": 0.5, "optim.warmup_epochs": 0.1}
PRETRAINING = BRIEF | {"run.eval_epochs": 0.5, "run.checkpoint_epochs": 0.5}
FINETUNING = {
    "model.embed_dim": 24, "model.depth": 2, "optim.epochs": 0.2, "optim.warmup_epochs": 0.1,
    "run.eval_epochs": 0.2,
}  # fmt: skip
CHANGES = {  # recipe -> its argument -> keys with their values
    "digits": {family: BRIEF | model for family, model in SMALLER.items()},
    "distill_digits": {family: PRETRAINING | model for family, model in SMALLER.items()},
    "mim_digits": {
        argument: PRETRAINING | SMALLER[argument.partition(",")[2]]
        for argument in ("simmim,vit", "simmim,swin", "mae,vit", "dino,vit")
    },
    "finetune_digits": {
        "digits": FINETUNING | {"optim.epochs": 0.4, "run.eval_epochs": 0.4},
        "scratch": FINETUNING,
        "finetune": FINETUNING,
        "lora": FINETUNING,
    },
}


def __getattr__(name: str) -> object:
    """Gives what else the recipe defines."""
    return getattr(importlib.import_module(f"configs.long_{NAME}"), name)


def get_config(*argument: str) -> ConfigDict:
    """Returns the recipe's config with its changes."""
    recipe = importlib.import_module(f"configs.long_{NAME}")
    config = recipe.get_config(*argument)
    (run,) = argument or recipe.get_config.__defaults__
    config.update_from_flattened_dict(CHANGES[NAME][run])
    return config
