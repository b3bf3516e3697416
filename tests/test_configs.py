"""Every recipe builds what it names: a model, an optimizer, a batch; and every key is read."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest
from kinds import mostly_long

from configs import base, swin_finetune, transfer, tutorial, vit_finetune
from vitswin_jax.core.types import UserError
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.train.run.prepare import prepare
from vitswin_jax.train.state import create_state
from vitswin_jax.train.step import train_step
from vitswin_jax.weights.published import published

CONFIGS = Path(base.__file__).parent
PARTS = ("base", "parts")  # what recipes are made of
ARGUMENTS = {  # a few of each recipe's; every one of them that is another model is built below
    "augreg": ["i1k,Ti/16", "i21k,S/16"],
    "deit": ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"],
    "deit3": ["deit3_small_patch16_224"],
    "digits": ["vit", "swin"],
    "dino": ["vit_small_patch16_224", "vit_small_patch16_224,ibot"],
    "distill": ["vit_tiny_patch16_224"],
    "distill_digits": ["vit", "swin"],
    "finetune_digits": ["digits", "scratch", "finetune", "lora"],
    "folder": ["vit_tiny_patch16_224"],
    "mae": ["vit_base_patch16_224", "vit_base_patch16_224,finetune"],
    "mim_digits": ["simmim,vit", "simmim,swin", "mae,vit", "dino,vit", "dino,swin"],
    "positions": ["none", "2d,input", "1d,every", "relative,shared"],
    "simmim": ["swin", "swinv2", "vit", "swin,finetune", "vit,finetune"],
    "speedrun": ["fashion,vit", "fashion,swin"],
    "swin": ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256",
             "swin_mlp_tiny_c24_patch4_window8_256"],
    "swin_22k": ["swin_tiny_patch4_window7_224", "swinv2_base_window12_192",
                 "swin_moe_small_patch4_window12_192_8expert"],
    "swin_finetune": ["swin_tiny_patch4_window7_224_22kto1k",
                      "swinv2_base_window12to16_192to256"],
    "transfer": ["flowers,vit_base_patch16_224", "cifar10,swin_tiny_patch4_window7_224",
                 "imagenet,vit_tiny_r_s16_p8_384"],
    "tutorial": ["vit", "swin", "swin,head"],
    "vit": ["i1k,vit_base_patch32_224", "i21k,B/16"],
    "vit_finetune": ["cifar10,ViT-B_32", "imagenet2012,R50+ViT-B_16"],
    "vit_s16": ["90"],
}  # fmt: skip
RECIPES = [(name, arg) for name, args in ARGUMENTS.items() for arg in args]
BUILT = mostly_long(  # one of each task, of both families
    RECIPES,
    [
        ("digits", "swin"), ("dino", "vit_small_patch16_224"), ("distill_digits", "vit"),
        ("finetune_digits", "lora"), ("mim_digits", "simmim,swin"), ("positions", "2d,input"),
        ("speedrun", "fashion,vit"),
    ],
)  # fmt: skip


def get_config(name, *arg):
    return importlib.import_module(f"configs.{name}").get_config(*arg)


def small(config):
    """Returns a recipe on the digits, with a small batch and nothing to load."""
    digits = config.data.dataset if config.data.dataset.startswith("digits") else "digits"
    config.data.update(dataset=digits, train_split="train", test_split="test")
    config.data.update(batch_size=16, eval_batch_size=8, workers=0)
    config.init_from = config.compare_to = config.distill.features = None
    config.mesh.data = 1
    config.optim.accum_steps = min(config.optim.accum_steps, 2)
    if config.optim.epochs and config.optim.warmup_steps:
        config.optim.warmup_steps = 10  # ImageNet has longer epochs
    config.model.scan = True  # fewer operations to trace
    return config


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"optim": {"peak_rl": 1e-3}}, KeyError),
        ({"optmi": {"peak_lr": 1e-3}}, KeyError),
        ({"optim": {"peak_lr": "fast"}}, TypeError),
    ],
)
def test_a_misspelt_key_of_a_recipe_raises(changes, error):
    with pytest.raises(error):
        base.recipe(**{"model": {"name": "vit"}} | changes)


def test_later_changes_of_a_recipe_win():
    first, second = {"optim": {"epochs": 3.0, "end_lr": 0.5}}, {"optim": {"epochs": 4.0}}
    config = base.recipe(first, second, model={"name": "vit", "depth": 3}, optim={"end_lr": 0.25})
    assert (config.optim.epochs, config.optim.end_lr) == (4.0, 0.25)
    assert (config.model.depth, config.optim.peak_lr) == (3, base.get_config().optim.peak_lr)
    assert config.is_locked


def test_a_part_of_an_argument_that_is_left_out_is_the_first_of_its_table():
    tables = (("cats", "dogs"), {"": 0, "finetune": 1})
    assert base.choices("x.py", "dogs", *tables) == ["dogs", ""]
    assert base.choices("x.py", "dogs,finetune", *tables) == ["dogs", "finetune"]
    with pytest.raises(UserError, match=r"configs/x\.py:dgos: part 1='dgos' must be .* 'dogs'\?"):
        base.choices("a/x.py", "dgos", *tables)
    with pytest.raises(UserError, match="at most 2 part"):
        base.choices("x.py", "dogs,,finetune", *tables)


def test_every_recipe_is_tested():
    files = {path.stem for path in CONFIGS.glob("*.py")} - {*PARTS, "finetune"}
    assert files == ARGUMENTS.keys()


@pytest.mark.parametrize(("name", "arg"), BUILT)
def test_a_recipe_builds_its_model_its_optimizer_and_a_batch(name, arg):
    config = get_config(name, arg)
    assert config.is_locked
    run = prepare(small(config))
    batches = run.make_train_batches(0, 1)
    batch = next(batches)
    batches.close()
    height, width = run.preprocess.img_size
    views = (2,) if config.pretrain.method == "dino" else ()
    assert batch["image"].shape == (16, *views, height, width, config.model.in_chans)
    assert np.ptp(np.asarray(batch["image"])) > 0

    def step(key):
        state, _ = create_state(run.model, run.tx, key, head_bias=run.head_bias, **run.state)
        options = {"model": run.model, "tx": run.tx, "options": run.options}
        return state, *train_step(state, batch, key, **options)

    begun, state, metrics = jax.eval_shape(step, jax.random.key(0))
    assert metrics["loss"].shape == ()
    kinds = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), each) for each in (begun, state)]
    assert kinds[0] == kinds[1]  # so that the next step is the same program
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float32")}


def recipes_from_weights():
    """(recipe, argument) for every row of the tables of what recipes start from."""
    yield from (("tutorial", family) for family in tutorial.MODELS)
    yield from (("swin_finetune", result) for result in swin_finetune.RECIPES)
    yield from (("vit_finetune", f"cifar10,{file}") for file in vit_finetune.MODELS)
    for weights in transfer.WEIGHTS:
        size = 384 if weights.endswith("window12") else 224
        yield "transfer", f"flowers,{weights}_{size}"


@pytest.mark.parametrize(("name", "arg"), list(recipes_from_weights()))
def test_what_a_recipe_starts_from_is_published_and_is_its_model_but_for_sizes(name, arg):
    config = get_config(name, arg)
    row = published()[config.init_from]
    sizes = ("img_size", "window_size", "pretrained_window_sizes")
    ours, theirs = (
        {key: value for key, value in VARIANTS[variant][1].items() if key not in sizes}
        for variant in (config.model.name, row.variant)
    )
    assert ours == theirs


@pytest.mark.parametrize("section", ["data", "preprocess", "augment", "loss", "optim", "pretrain",
                                     "distill", "ema", "lora", "mesh", "run", "model"])  # fmt: skip
def test_a_key_that_nothing_reads_raises(section):
    config = small(get_config("digits", "vit"))
    with config.unlocked():
        config[section].nobody_reads_this = 1
    with pytest.raises((TypeError, ValueError), match="nobody_reads_this"):
        prepare(config)


@pytest.mark.parametrize(
    ("name", "arg"),
    [
        ("augreg", "i1k,H/14"),
        ("deit3", "deit_small"),
        ("digits", "resnet"),
        ("dino", "swin_tiny_patch4_window7_224"),
        ("finetune", ""),
        ("finetune_digits", "all"),
        ("mae", "vit_tiny_patch16_224"),
        ("mim_digits", "mae,swin"),
        ("positions", "relative,input"),
        ("simmim", "swin,tune"),
        ("speedrun", "mnist,vit"),
        ("swin", "swin_large_patch4_window7_224"),
        ("swin_22k", "vit_base_patch16_224"),
        ("swin_finetune", "swin_tiny"),
        ("transfer", "birds,vit_base_patch16_224"),
        ("tutorial", "resnet"),
        ("vit", "jft,B/16"),
        ("vit_finetune", "cifar10,B/16"),
        ("vit_s16", "ninety"),
    ],
)
def test_an_argument_that_a_recipe_does_not_know_is_one_line(name, arg):
    with pytest.raises(UserError, match=rf"configs/{name}\.py") as error:
        get_config(name, arg)
    assert "\n" not in str(error.value)
