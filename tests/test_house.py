"""The house's own rules: who imports whom, and that every config is consumed whole."""

import ast
import fnmatch
import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vitswin_jax"

# Module pattern -> what it may import of the package; the first pattern that matches rules.
DIRECTIONS = {
    "types": [],
    "version": [],
    "cache": [],
    "atomic": ["types"],
    "download": ["types", "atomic"],
    "published": ["types", "convert.source", "models.registry"],
    "hub_config": [],
    "locate": ["types", "cache", "download", "hub_config", "published", "convert.formats"],
    "__init__": ["*"],
    "metadata": ["types", "data.transforms"],
    "weights": [
        "types",
        "atomic",
        "locate",
        "metadata",
        "convert*",
        "models*",
        "data.transforms",
        "version",
    ],
    "pretrained": [
        "types",
        "atomic",
        "locate",
        "metadata",
        "weights",
        "convert*",
        "models*",
        "data*",
        "version",
    ],
    "models.*variants": ["models.*variants"],
    "models": [],
    "models.*": ["types", "models.*"],
    "convert": [],
    "convert.*": ["types", "atomic", "version", "convert.*"],
    "data": [],
    "data.*": ["types", "atomic", "cache", "data.*"],
    "train.loop": ["*"],
    "train.start": [
        "types",
        "atomic",
        "train.*",
        "data.transforms",
        "models.*",
        "pretrained",
        "weights",
    ],
    "train.distill": ["types", "train.*", "models.layers"],
    "train.run": ["types", "train.*", "data.*", "models.*"],
    "train.groups": ["types", "models.blocks"],
    "train.optim": ["types", "models.blocks", "train.*"],
    "train*": ["types", "train.*"],
    "analysis*": [
        "types",
        "atomic",
        "version",
        "metadata",
        "weights",
        "pretrained",
        "analysis.*",
        "models.*",
        "convert.files",
        "data.*",
        "train.steps",
        "train.state",
        "train.optim",
        "train.sharding",
    ],
    "cli*": ["*"],
}


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path):
    """The modules of the package that a file names, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [node.module]
            if (PACKAGE.parent / node.module.replace(".", "/")).is_dir():
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("vitswin_jax."):
                yield name.removeprefix("vitswin_jax.")
            assert name.split(".")[0] != "configs", f"{path}: nobody imports configs"


def is_module(name):
    path = PACKAGE / name.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_imports_point_one_way(path):
    name = module_name(path)
    allowed = next(may for pattern, may in DIRECTIONS.items() if fnmatch.fnmatch(name, pattern))
    for imported in imports_of(path):
        target = imported if is_module(imported) else imported.rpartition(".")[0]
        assert target == "" or any(fnmatch.fnmatch(target, may) for may in allowed), (
            f"{name} imports {target}; it may import {', '.join(allowed) or 'nothing'}"
        )


@pytest.mark.parametrize("name", ["types", "version", "models.variants"])
def test_leaves_do_not_import_jax(name):
    source = (PACKAGE / name.replace(".", "/")).with_suffix(".py").read_text()
    roots = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not roots & {"jax", "flax"}


def test_data_workers_need_no_jax_of_ours():
    for path in (PACKAGE / "data").glob("*.py"):
        assert "import jax\n" not in path.read_text(), path


CONFIGS = [
    ("digits", "vit"),
    ("digits", "swin"),
    ("finetune_digits", "digits"),
    ("finetune_digits", "scratch"),
    ("folder", "vit_tiny_patch16_224"),
    ("folder", "swin_tiny_patch4_window7_224"),
]


def test_every_config_is_listed_here():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"base", "__init__"}
    assert files == {name for name, _ in CONFIGS}


@pytest.fixture
def configs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    yield lambda name: importlib.import_module(f"configs.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
        del sys.modules[name]


@pytest.mark.parametrize(("name", "argument"), CONFIGS)
def test_every_config_builds_its_run_and_consumes_every_key(configs, name, argument, tmp_path):
    from vitswin_jax.train.run import prepare

    config = configs(name).get_config(argument)
    assert config.is_locked
    config.data.dataset = "digits"
    run = prepare(config)
    images = jax.ShapeDtypeStruct((1, *run.preprocess.img_size, 3), jnp.float32)
    shapes = jax.eval_shape(run.model.init, jax.random.key(0), images)
    assert jax.eval_shape(run.tx.init, shapes["params"]) is not None
    batch = next(run.make_train_batches(0))
    assert batch["image"].shape == (config.data.batch_size, *run.preprocess.img_size, 3)
    assert batch["image"].dtype == jnp.uint8


@pytest.mark.parametrize(
    "section",
    [
        "data",
        "preprocess",
        "augment",
        "loss",
        "distill",
        "ema",
        "lora",
        "optim",
        "mesh",
        "run",
        "model",
    ],
)
def test_a_key_that_nothing_reads_raises(configs, section):
    from vitswin_jax.train.run import prepare

    config = configs("digits").get_config("vit")
    with config.unlocked():
        config[section].unread = 1
    with pytest.raises((TypeError, ValueError), match="unread"):
        prepare(config)
