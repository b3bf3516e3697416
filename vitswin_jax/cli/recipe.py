"""The recipe of `vitswin train`, `config` and `plan`: its data, and its changes by flags."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitswin_jax.cli.inputs import holds_weights
from vitswin_jax.core import recipes
from vitswin_jax.core.recipes import ANY_MODEL, FROM_WEIGHTS
from vitswin_jax.core.types import UserError, naming

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from vitswin_jax.train.run.overrides import Override

EXAMPLES = """\
examples:
  vitswin train ./flowers
  vitswin train ./flowers --minutes 10
  vitswin train folder:swin_tiny_patch4_window7_224 ./flowers --epochs 30 --batch-size 32
  vitswin train ./flowers --init-from swin/swin_tiny_patch4_window7_224 --lr 1e-4
  vitswin train digits:vit --name first --optim.weight_decay=0.1
"""


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Declares RECIPE, DATA and the short flags; `args.overrides` has all other keys."""
    add = parser.add_argument
    add(
        "recipe",
        metavar="RECIPE",
        nargs="?",
        help="Use this recipe: a name such as digits or folder:vit_tiny_patch16_224, or a file "
        "mine.py; the part after the colon is its argument (default: the recipe with the name of "
        f"the data, or else {ANY_MODEL}).",
    )
    add(
        "data",
        metavar="DATA",
        nargs="?",
        help="Use this dataset: a folder of images, a table.csv, shards.tar, hf:NAME, a mixture "
        "or a TFDS name (default: the dataset of the recipe).",
    )
    add("--config", metavar="RECIPE", help="Name RECIPE in another way, as in train.py.")
    add(
        "--model",
        metavar="NAME",
        help="Use this model instead of the recipe's; `vitswin models` lists the names.",
    )
    for flag, metavar, text in (
        ("--epochs", "N", "Train for N epochs (optim.epochs)."),
        ("--batch-size", "N", "Use N images per step, over all devices (data.batch_size)."),
        ("--lr", "RATE", "Set the peak of the learning rate (optim.peak_lr)."),
        ("--img-size", "N|HxW", "Use images of N x N, or H x W, pixels (model.img_size)."),
        ("--seed", "N", "Seed all random numbers with N (seed)."),
        ("--init-from", "WEIGHTS", "Start from weights: a run, a file or a published name."),
    ):
        add(flag, metavar=metavar, help=text)
    parser.set_defaults(overrides=[])
    parser.add_argument_group(
        "any other key",
        "Set it by --section.key=value, such as --optim.weight_decay=0.1; "
        "--config.section.key=value is the same. `vitswin config RECIPE` lists the keys, their "
        "values and their defaults.",
    )


def list_recipes() -> list[str]:
    """Returns one line for each recipe."""
    names = recipes.recipe_names()
    width = max(map(len, names), default=0)
    return ["recipes:", *(f"  {name:{width}}  {summary}" for name, summary in names.items())]


def read_config(args: argparse.Namespace, *, also: Sequence[str] = ()) -> ConfigDict:
    """Returns the config that the arguments name; `also` are the command's other flags."""
    return Named.of(args, also=also).config({})


@dataclass(frozen=True)
class Named:
    """The recipe, the data and the keys that arguments set."""

    args: argparse.Namespace
    recipe: str
    data: str | None
    """None: the recipe's own."""
    given: bool
    """Whether the recipe was named, rather than follows from the data."""
    changes: Sequence[Override]
    also: Sequence[str]

    @classmethod
    def of(cls, args: argparse.Namespace, *, also: Sequence[str] = ()) -> Named:
        """Reads the arguments; raises UserError for words and keys that name nothing."""
        from vitswin_jax.train.run import overrides
        from vitswin_jax.train.run.recipe import read_defaults

        words, keys = _divide(args)
        also = [*also, *(f"--{name}" for name in ("config", "model", *overrides.SHORT))]
        changes = [overrides.parse_override(key) for key in keys]
        # First, for what follows a flag that is misspelt is taken for RECIPE or DATA.
        defaults = read_defaults("vit")
        named = [change for change in changes if not change.key.startswith("model.")]
        overrides.check_known(named, overrides.config_keys(defaults), also)
        for change in named:
            if change.value is None:  # as in --loggers wandb, whose value is taken for a word too
                overrides.apply(defaults, change, also=also)
        recipe, data = choose(words, config=args.config, init_from=args.init_from)
        given = args.config is not None or data is None or len(words) == 2
        return cls(args, recipe, data, given, changes, also)

    def keys(self) -> set[str]:
        """Returns the keys that the arguments set."""
        from vitswin_jax.train.run.overrides import SHORT

        short = {key for name, key in SHORT.items() if self._short(name) is not None}
        model = {"model.name"} if self.args.model else set()
        return short | model | {change.key for change in self.changes}

    def config(self, keys: Mapping[str, Any], recipe: str | None = None) -> ConfigDict:
        """Returns the recipe's config, with `keys`, and in their place what the arguments set."""
        from vitswin_jax.train.run import overrides
        from vitswin_jax.train.run.recipe import read_recipe, set_model

        config = read_recipe(self.recipe if recipe is None else recipe)
        names = (change.value for change in self.changes if change.key == "model.name")
        for name in filter(None, [self.args.model, *names]):
            set_model(config, name)
        if self.data is not None:
            config.data.dataset = self.data
        config.update_from_flattened_dict(dict(keys))
        for name, key in overrides.SHORT.items():
            if (value := self._short(name)) is not None:
                config.update_from_flattened_dict(dict.fromkeys(overrides.INSTEAD.get(key, ())))
                overrides.apply(config, overrides.Override(f"--{name}", key, value))
        for change in self.changes:
            if change.key != "model.name":
                overrides.apply(config, change, also=self.also)
        return config

    def _short(self, name: str) -> str | None:
        return getattr(self.args, name.replace("-", "_"))


def choose(
    words: Sequence[str], *, config: str | None = None, init_from: str | None = None
) -> tuple[str, str | None]:
    """Returns the recipe and the data that RECIPE and DATA name; None: the recipe's own data.

    One word is the data if it names a dataset, and else a recipe. `config` is the recipe of
    --config, beside which a word is the data. Raises UserError for words that name nothing.
    """
    most = 2 if config is None else 1
    if len(words) > most:
        expected = "RECIPE and DATA" if config is None else "DATA, beside --config,"
        raise UserError(
            f"unexpected {' '.join(words[most:])}: {expected} are all words; a key is set by "
            "--section.key=value."
        )
    if config is not None:
        return config, words[0] if words else None
    if len(words) == 2:
        recipe, data = words
        if not recipes.is_recipe(recipe) and recipes.is_recipe(data):
            raise UserError(f"{recipe} {data}: RECIPE comes first, then DATA: {data} {recipe}.")
        _check_recipe(recipe)
        return recipe, data
    if not words:
        raise UserError("name a RECIPE, DATA or both; `vitswin train` lists the recipes.")
    (word,) = words
    if _is_data(word):
        return _default_recipe(word, init_from), word
    with naming("neither a dataset nor a recipe"):
        _check_recipe(word)
    return word, None


def _default_recipe(data: str, init_from: str | None) -> str:
    from vitswin_jax.data.sources.digits import EMBEDDED

    if init_from is not None:
        return f"{FROM_WEIGHTS}:{init_from}"
    return data if data in EMBEDDED and recipes.is_recipe(data) else ANY_MODEL


def _is_data(word: str) -> bool:
    """Returns whether a word names a dataset, of TFDS too where it names no recipe."""
    from vitswin_jax.data.sources.open import is_dataset
    from vitswin_jax.data.sources.tfds import tfds_builder

    name = word.partition(":")[0]
    if name.endswith(".py") or holds_weights(word):
        return False
    if is_dataset(word) or recipes.is_recipe(word) or _is_model(word):
        return is_dataset(word)
    try:
        return tfds_builder(word, None) is not None
    except UserError:
        return False


def _is_model(word: str) -> bool:
    from vitswin_jax.models.registry import model_kwargs

    try:
        return bool(model_kwargs(word))
    except UserError:
        return False


def _check_recipe(word: str) -> None:
    """Raises UserError, with the recipes there are, unless a word names one."""
    if not recipes.is_recipe(word) and holds_weights(word):
        raise UserError(
            f"{word} is weights and no recipe; start from them by `vitswin train DATA --init-from "
            f"{word}`."
        )
    if not recipes.is_recipe(word) and _is_model(word):
        raise UserError(
            f"{word} is a model and no recipe; write {ANY_MODEL}:{word}, or --model {word}."
        )
    recipes.find_recipe(word)


def _divide(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Returns the words among the arguments, wherever they were, and the keys."""
    words = [word for word in (args.recipe, args.data) if word is not None]
    words += [text for text in args.overrides if not text.startswith("-")]
    return words, [text for text in args.overrides if text.startswith("-")]
