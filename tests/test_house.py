"""The house's own rules: who imports whom (test_configs.py has those of the recipes)."""

import ast
import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vitswin_jax"

# Module pattern -> what it may import of the package; the first pattern that matches rules.
DIRECTIONS = {
    "types": [],
    "version": [],
    "cache": [],
    "heap": [],
    "atomic": ["types"],
    "download": ["types", "atomic"],
    "published": ["types", "convert.source", "models.registry"],
    "hub_config": [],
    "locate": ["types", "cache", "download", "hub_config", "published", "convert.formats"],
    "__init__": ["*"],
    "metadata": ["types", "data.transforms"],
    "model_shapes": ["types", "convert.adapt", "models.*"],
    "weights": [
        "types",
        "model_shapes",
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
        "model_shapes",
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
    "data.*": ["types", "atomic", "cache", "heap", "data.*"],
    "recipe": ["types"],
    "train.loop": ["*"],
    "train.pretraining": ["types", "train.*", "analysis.*", "models.masked", "pretrained"],
    "train.unlabelled": ["types", "train.*", "data.*"],
    "train.start": [
        "types",
        "atomic",
        "download",
        "train.*",
        "data.transforms",
        "models.*",
        "pretrained",
        "weights",
    ],
    "train.distill": ["types", "train.*", "models.layers"],
    "train.run": ["types", "train.*", "data.*", "models.*"],
    "train.groups": ["types", "models.blocks"],
    "train.metrics": ["types", "atomic", "train.*"],
    "train.optim": ["types", "models.blocks", "train.*"],
    "train.sharding": ["types", "models.blocks", "train.*"],
    "train*": ["types", "train.*"],
    "analysis.budget": ["types", "analysis.*", "data.*", "train.*"],
    "analysis*": [
        "types",
        "atomic",
        "version",
        "metadata",
        "weights",
        "pretrained",
        "analysis.*",
        "models.*",
        "published",
        "convert.files",
        "convert.swin",
        "data.*",
        "train.steps",
        "train.state",
        "train.optim",
        "train.sharding",
    ],
    "benchmark.peers": [],
    "benchmark*": [
        "types",
        "atomic",
        "heap",
        "analysis.cost",
        "benchmark.*",
        "models.*",
        "pretrained",
        "train.*",
    ],
    "export.quantize": [],
    "export*": [
        "types",
        "atomic",
        "version",
        "metadata",
        "export.*",
        "models.*",
        "data.transforms",
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
