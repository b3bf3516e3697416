"""`vitswin train`: what its words and flags mean, and that it trains as train.py does."""

import json
import re
import shlex

import pytest
from ml_collections import ConfigDict
from PIL import Image

from vitswin_jax import cli
from vitswin_jax.cli.place import choose_workdir
from vitswin_jax.cli.recipe import EXAMPLES, choose, read_config
from vitswin_jax.core.recipes import FOLDER, is_recipe, recipe_names
from vitswin_jax.core.types import UserError
from vitswin_jax.weights.published import find_published

TINY = ("--model.embed_dim=8", "--model.depth=1", "--model.num_heads=1", "--batch-size=8",
        "--data.eval_batch_size=8", "--optim.warmup_epochs=0")  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder that has `flowers`, of two colours, and `swin`, an empty one called as a recipe."""
    monkeypatch.chdir(tmp_path)
    for label, color in (("red", "red"), ("blue", "blue")):
        (tmp_path / "flowers" / label).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (20, 20), color).save(tmp_path / "flowers" / label / f"{i}.png")
    (tmp_path / "swin").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "more", "chosen"),
    [
        (["./flowers"], {}, ("folder", "./flowers")),
        (["flowers"], {}, ("folder", "flowers")),
        (["swin"], {}, ("folder", "swin")),  # the folder that is here
        (["vit"], {}, ("vit", None)),
        (["digits"], {}, ("digits", "digits")),
        (["digits:swin"], {}, ("digits:swin", None)),
        (["configs/digits.py:swin"], {}, ("configs/digits.py:swin", None)),
        (["digits_parity"], {}, ("folder", "digits_parity")),
        (["hf:user/beans"], {}, ("folder", "hf:user/beans")),
        (["labels.csv"], {}, ("folder", "labels.csv")),
        (["folder:vit", "flowers"], {}, ("folder:vit", "flowers")),
        (["./flowers"], {"init_from": "runs/a"}, ("finetune:runs/a", "./flowers")),
        ([], {"config": "digits:vit"}, ("digits:vit", None)),
        (["./flowers"], {"config": "digits:vit"}, ("digits:vit", "./flowers")),
    ],
)  # fmt: skip
def test_what_words_mean(here, words, more, chosen):
    assert choose(words, **more) == chosen


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a RECIPE, DATA or both"),
        (["flowesr"], "neither a dataset nor a recipe: flowesr: no recipe is called so; there are"),
        (["digts:vit"], "did you mean 'digits'"),
        (["foldr", "./flowers"], "foldr: no recipe is called so; there are .*'folder'"),
        (["./flowers", "folder"], "RECIPE comes first, then DATA: folder ./flowers"),
        (["vit_tiny_patch16_224"], "is a model and no recipe; write folder:vit_tiny_patch16_224"),
        (["vit_tiny_patch16_224", "./flowers"], "is a model and no recipe; write folder:vit_tiny"),
        (["vit_tiny", "./flowers"], "vit_tiny: no recipe is called so"),
        (["run"], "run is weights and no recipe; start from them by `vitswin train DATA --init-fr"),
        (["run", "./flowers"], "run is weights and no recipe"),
        (["a", "b", "c"], "unexpected c: RECIPE and DATA are all words"),
    ],
)
def test_words_that_name_nothing(here, words, message):
    (here / "run").mkdir()
    (here / "run" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=message):
        choose(words)


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("./flowers/", "flowers"),
        ("hf:user/beans", "beans"),
        ("a/train-{000..127}.tar", "train"),
        ("labels.csv", "labels"),
        ("0.7*a + 0.3*b", "0.7a-0.3b"),
        ("gs://bucket/birds", "birds"),
        ("/", "data"),
    ],
)
def test_a_run_is_called_by_its_data_and_its_model(dataset, name):
    config = ConfigDict({"data": {"dataset": dataset}, "model": {"name": "vit"}})
    assert choose_workdir(None, None, config) == f"runs/{name}-vit"
    assert choose_workdir(None, "first", config) == "runs/first"
    assert choose_workdir("/a/b", None, config) == "/a/b"
    for wrong in ("a/b", "..", ""):
        with pytest.raises(UserError, match="is the name of a folder of runs/; --workdir takes"):
            choose_workdir(None, wrong, config)
    with pytest.raises(UserError, match="--workdir=a and --name=b are two folders"):
        choose_workdir("a", "b", config)


def commands_of_recipes():
    """The words of each command that a recipe's docstring shows."""
    for name in recipe_names():
        text = (FOLDER / f"{name}.py").read_text().replace("\\\n", "")
        yield from (shlex.split(line)[2:] for line in re.findall(r"^vitswin train .*", text, re.M))


@pytest.mark.long
def test_the_commands_of_recipes_can_be_run():
    words = {tuple(command) for command in commands_of_recipes()}
    assert {command[0].partition(":")[0] for command in words} == set(recipe_names())
    for command in words:
        if command[0].startswith("finetune:"):  # whose weights are downloaded
            continue
        args = cli._parse(["train", *command])
        config = read_config(args)
        assert config.data.dataset == args.data or args.data is None


@pytest.mark.long
def test_it_trains_on_a_folder_from_anywhere_and_the_run_is_used(here, vitswin):
    """Words may stand between flags; every frequent setting has a flag."""
    flags = ("--epochs", "1", "--img-size=16", "--lr", "1e-2", "--seed", "3")
    status, out, err = vitswin("train", *flags, "folder", *TINY, "--optim.b1", "0.8", "./flowers")
    assert status == 0, err
    workdir = here / "runs" / "flowers-vit_tiny_patch16_224"
    assert str(workdir.relative_to(here)) in out
    config = json.loads((workdir / "config.json").read_text())
    assert (config["optim"]["epochs"], config["optim"]["peak_lr"]) == (1.0, 0.01)
    assert (config["seed"], config["model"]["img_size"], config["optim"]["b1"]) == (3, 16, 0.8)
    status, out, _ = vitswin("predict", workdir, "flowers/red/0.png")
    assert status == 0 and {"red", "blue"} <= set(out.split())
    assert "vitswin train --epochs 1" in (workdir / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "5", "./flowers"], "--epoch: there is no such flag or key; did you mean --ep"),
        (["--wrkdir=x", "./flowers"], "no such flag or key; did you mean --workdir?"),
        (["./flowers", "--img-size=15"], "img_size=15x15 is no multiple of patch_size=16x16"),
        (["./flowers", "--model", "vit_tiny_patch16_22"], "did you mean 'vit_tiny_patch16_224'?"),
        (["./flowers", "--model=swin_tiny"], "'swin_tiny'; there are swin_tiny_c24"),
        (["./flowers", "--epochs=many"], "--epochs needs a number, not 'many'"),
        (["./flowers", "--init-from=none"], "none: no such file or folder"),
        (["./flowers", "--project", "flowers"], "--project needs a text; write --project=VALUE"),
        (["digits:vit", "--loggers", "wandb"], "--loggers needs a tuple, such as (1,2); write"),
        (["finetune", "./flowers"], "the argument is the weights to start from"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_writes_nothing(here, vitswin, arguments, message):
    status, out, err = vitswin("train", *arguments)
    assert (status, out) == (1, "")
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (here / "runs").exists()


def test_the_examples_name_what_there_is():
    for line in EXAMPLES.splitlines()[1:]:
        args = cli._parse(shlex.split(line)[1:])
        assert args.init_from is None or find_published(args.init_from) is not None
        assert args.data is not None or args.recipe == "./flowers" or is_recipe(args.recipe)
