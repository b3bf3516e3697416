"""The built wheel, in an environment that has the dependencies but not the source tree."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from PIL import Image

from vitswin_jax.core.version import __version__
from vitswin_jax.models.registry import create_model
from vitswin_jax.weights.save import save_pretrained
from vitswin_jax.weights.shapes import parameter_shapes

ROOT = Path(__file__).parents[1]


def run(command, **kwargs):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True, text=True, timeout=300, check=False, env=environment, **kwargs,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr or done.stdout
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git would have, so that nothing of a build stays in the tree."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree)
    for name in ("vitswin_jax", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            tree / "dist",
            tree,
        ]
    )
    (wheel,) = (tree / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """Installs the wheel; returns the folder of the new environment's programs."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": home, "platbase": home}))
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            home,
            "install",
            "--no-deps",
            "--no-index",
            "--quiet",
            wheel,
        ]
    )
    # The dependencies are those of this environment. An editable install of the tree is no .pth
    # there that counts: only site-packages itself is added, and after the wheel's.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / ("Scripts" if os.name == "nt" else "bin")


def test_wheel_carries_what_its_commands_need(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "vitswin_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"vitswin_jax/py.typed", "vitswin_jax/report/report.html"} <= package
    recipes = {f"vitswin_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert (package | recipes) - names == set()
    assert not [name for name in names if name.startswith(("tests/", "configs/"))]


def test_each_package_is_listed():
    """As setuptools needs it, whose own search cannot put configs/ inside the package."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    inits = [path.parent.relative_to(ROOT) for path in (ROOT / "vitswin_jax").rglob("__init__.py")]
    assert listed == [*sorted(".".join(path.parts) for path in inits), "vitswin_jax.configs"]


def test_the_installed_package_is_the_wheels(scripts, tmp_path):
    script = "import vitswin_jax; print(vitswin_jax.__file__, vitswin_jax.__version__)"
    place, version = run([scripts / "python", "-c", script], cwd=tmp_path).stdout.split()
    assert Path(place).is_relative_to(scripts.parent)
    assert version == __version__


def test_recipes_are_those_of_the_wheel(scripts, tmp_path):
    done = run([scripts / "vitswin", "config"], cwd=tmp_path)
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} - set(done.stdout.split()) == {
        "base", "parts",
    }  # fmt: skip
    script = "from vitswin_jax.core import recipes; print(recipes.FOLDER)"
    place = run([scripts / "python", "-c", script], cwd=tmp_path).stdout.strip()
    assert Path(place).is_relative_to(scripts.parent)


@pytest.mark.long
def test_predict(scripts, tmp_path):
    """A model that reads nothing but brightness: it must tell a white image from a black one."""
    model = create_model(
        "vit", img_size=8, patch_size=8, embed_dim=4, depth=1, num_heads=1, num_classes=2,
        global_pool="avg", class_token=False,
    )  # fmt: skip
    flat = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(model).items()}
    flat["patch_embed/proj/kernel"][..., 0] = 1
    flat["norm/scale"][:] = 1
    flat["head/kernel"][0] = [-5, 5]
    variables = {"params": unflatten_dict(flat, sep="/")}
    metadata = {"class_names": ("black", "white")}
    save_pretrained(tmp_path, model, variables, metadata=metadata)
    for color in ("black", "white"):
        Image.new("RGB", (9, 9), color).save(tmp_path / f"{color}.png")
        command = [scripts / "vitswin", "predict", tmp_path, tmp_path / f"{color}.png"]
        done = run([*command, "--top-k", "1"], cwd=tmp_path)
        assert done.stdout.split()[1] == color
        assert done.stderr == ""


@pytest.mark.long
def test_a_day_with_the_wheel(scripts, tmp_path):
    """From a folder of pictures to a model in use, in an empty folder and without the checkout."""
    for label, color in (("red", "red"), ("blue", "blue")):
        (tmp_path / "flowers" / label).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (40, 30), color).save(tmp_path / "flowers" / label / f"{i}.jpg")

    def vitswin(*arguments):
        return run([scripts / "vitswin", *arguments], cwd=tmp_path).stdout

    recipe = "folder:vit_tiny_patch16_224"
    small = ["--img-size=32", "--batch-size=8", "--model.depth=2", "--optim.warmup_epochs=0"]
    assert "optim.epochs" in vitswin("config", recipe, "./flowers", "--epochs=2")
    trained = vitswin("train", recipe, "./flowers", "--epochs=2", "--lr=1e-3", *small)
    workdir = tmp_path / "runs" / "flowers-vit_tiny_patch16_224"
    assert "test accuracy" in trained and (workdir / "report.html").exists()
    photo = "flowers/red/0.jpg"
    assert {"red", "blue"} <= set(vitswin("predict", workdir, photo).split())
    assert "top-1" in vitswin("evaluate", workdir)
    assert "index.html" in vitswin("explain", workdir, photo)
    assert "flowers.onnx" in vitswin("export", workdir, "flowers.onnx")
    vitswin("convert", workdir, "flowers.safetensors", "--to", "timm", "--verify")
    files = {"flowers", "runs", "explain", "flowers.onnx", "flowers.safetensors"}
    assert files <= {path.name for path in tmp_path.iterdir()}
