"""`vitswin plan`: what it says of small runs, against what is counted by hand."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from vitswin_jax import cli
from vitswin_jax.models.registry import create_model
from vitswin_jax.plan import budget as budgets
from vitswin_jax.plan import topology as topologies
from vitswin_jax.plan.topology import TPUS, open_topology
from vitswin_jax.train.run.compile import make_step
from vitswin_jax.train.run.prepare import prepare
from vitswin_jax.train.run.recipe import read_recipe
from vitswin_jax.weights.shapes import parameter_shapes

ROOT = Path(__file__).parents[2]
RECIPE = f"{ROOT / 'configs' / 'vit.py'}:i1k,vit_tiny_patch16_224"
SMALL = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32}
KEYS = [f"--config.model.{key}={value}" for key, value in SMALL.items()]
# ml_collections loads recipes by a method that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the extra tpu is not installed"
)


@pytest.fixture(autouse=True, scope="module")
def eight_devices():
    """JAX begins with all of them, before a topology asks for fewer."""
    assert len(jax.devices()) == 8


def plan(vitswin, *arguments, recipe=RECIPE):
    status, out, err = vitswin("plan", recipe, "--json", *KEYS, *arguments)
    assert (status, err) == (0, "")
    return json.loads(out)


@pytest.fixture(scope="module")
def count():
    """The parameters of the small model, by their shapes."""
    model = create_model("vit_tiny_patch16_224", **SMALL)
    shapes = parameter_shapes(model).values()
    return sum(int(jax.numpy.prod(jax.numpy.array(shape))) for shape in shapes)


@pytest.mark.long
def test_memory_and_traffic_of_copies(vitswin, count):
    """Eight copies of the model: whole parameters, an eighth of the batch, gradients summed."""
    said = plan(vitswin, "--topology", "cpu:8", "--batch", "16")
    assert said["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert said["parameters"] == count
    memory = said["memory"]
    assert memory["parameters"] == 4 * count
    assert memory["optimizer"] == pytest.approx(8 * count, rel=1e-3)  # Adam's moments, counters
    assert memory["batch"] == 2 * (32 * 32 * 3 + 4 + 4)
    assert said["traffic"]["all-reduce"]["nbytes"] == pytest.approx(4 * count, rel=0.01)
    assert said["fits"] and said["total"] == sum(memory.values())
    assert said["tried"] == []


@pytest.mark.long
def test_divided_parameters_take_less_of_a_device(vitswin, count):
    said = plan(vitswin, "--topology=cpu:8", "--config.mesh.fsdp=8", "--config.mesh.data=1")
    assert said["batch_size"] == 4096
    assert said["memory"]["parameters"] < 4 * count / 4
    assert said["traffic"]["all-gather"]["nbytes"] > 4 * count / 2


@pytest.mark.long
def test_only_gradients_leave_a_slice(vitswin, count):
    """Two slices of four: a copy of the model in each, whose gradients are summed between them."""
    keys = ["--topology=cpu:8", "--slices=2", "--batch=16", "--config.mesh.fsdp=2"]
    said = plan(vitswin, *keys)
    assert said["mesh"] == {"slice": 2, "data": 2, "fsdp": 2, "tensor": 1}
    assert said["only_gradients"] is True
    assert said["between_slices"].keys() == {"all-reduce"}
    sent = said["between_slices"]["all-reduce"]["nbytes"]
    assert 4 * count / 2 < sent < 1.05 * 4 * count
    assert said["traffic"].keys() > {"all-gather"}
    assert plan(vitswin, *keys[:1], *keys[2:])["only_gradients"] is None


@pytest.mark.long
def test_images_that_leave_a_slice_are_named(vitswin):
    """Mixup's partner of an image is at the other end of the batch."""
    keys = ["--topology=cpu:8", "--mesh.slices=2", "--batch=16", "--augment.mixup_alpha=0.2"]
    said = plan(vitswin, *keys)
    assert said["only_gradients"] is False
    images = 2 * 32 * 32 * 3 * 4
    assert said["between_slices"]["collective-permute"]["nbytes"] >= images
    status, out, _ = vitswin("plan", RECIPE, *KEYS, *keys)
    assert status == 0
    assert "between slices: not only gradients, but also collective-permute; mixup" in out


def test_it_compiles_the_function_that_the_trainer_jits(monkeypatch):
    """And with the trainer's own arguments: its options, optimizer and layouts."""
    made = []
    monkeypatch.setattr(budgets, "make_step", lambda *args: made.append(args) or make_step(*args))
    config = read_recipe(RECIPE, KEYS)
    budgets.make_budget(config, open_topology("cpu:1"))
    run = made[0][0]
    assert run.options == prepare(config, opener=_described).options
    assert run.plan.batch_size == 4096


def _described(data, *, seed):
    return budgets.describe_data(data, seed=seed, classes=None)


@pytest.mark.long
def test_where_it_does_not_fit_it_says_what_would(monkeypatch, capsys):
    """On a device that lacks one byte."""
    batch = "--config.data.batch_size=1024"
    devices = open_topology("cpu:1")
    whole = budgets.make_budget(read_recipe(RECIPE, [*KEYS, batch]), devices).total
    small = topologies.Topology("small", devices.devices, whole - 1)
    monkeypatch.setattr(topologies, "open_topology", lambda name: small)
    assert cli.main(["plan", RECIPE, *KEYS, "--batch=1024"]) == 0
    lines = capsys.readouterr().out.splitlines()
    *tried, last = lines[lines.index("does not fit: 100% of a device") + 2 :]
    assert all(line.startswith("would not  ") for line in tried)
    change = [word for word in last.split() if word.startswith("--config")]
    needs = budgets.make_budget(read_recipe(RECIPE, [*KEYS, batch, *change]), devices).total
    assert needs < whole
    assert last == f"would fit  {needs / 2**20:,.1f} MiB  {' '.join(change)}"


def test_what_is_tried_begins_with_what_costs_least():
    """Largest divisions that the model's 32 channels and the batch allow, and remat once."""
    config = read_recipe(RECIPE, [*KEYS, "--config.optim.accum_steps=4"])
    tried = list(budgets.changes_that_save(config, open_topology("cpu:8")))
    parts, remat = {"optim.accum_steps": 8}, {"model.remat": "full"}
    mesh = {"mesh.data": -1, "mesh.fsdp": 8}
    assert tried == [
        parts,
        remat,
        remat | parts,
        mesh,
        mesh | remat,
        mesh | remat | parts,
    ]
    config.optim.accum_at_once = True
    tried = list(budgets.changes_that_save(config, open_topology("cpu:8")))
    assert tried[:2] == [{"optim.accum_at_once": False}, parts | {"optim.accum_at_once": False}]
    config = read_recipe(
        RECIPE, [*KEYS, "--config.model.embed_dim=12", "--config.model.remat=full"]
    )
    tried = list(budgets.changes_that_save(config, open_topology("cpu:8")))
    assert {change["mesh.fsdp"] for change in tried if "mesh.fsdp" in change} == {4}
    assert not any("model.remat" in change for change in tried)


def test_classes_of_data_that_is_not_here(vitswin, count):
    arguments = ["--topology=cpu:1", "--config.data.dataset=nowhere", "--batch=8"]
    status, _, err = vitswin("plan", RECIPE, *KEYS, *arguments)
    assert status == 1
    assert err.startswith(
        "error: data.dataset=nowhere cannot be opened, and a plan needs its number of"
    )
    fewer = plan(vitswin, *arguments, "--classes=10")["parameters"]
    assert count - fewer == 990 * (SMALL["embed_dim"] + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9:4x4"], "topology v9:4x4: is KIND:LAYOUT of a TPU, such as v2:4x4"),
        (["--topology=cpu:x"], "topology cpu:x: is KIND:LAYOUT"),
        (["--topology=cpu:999"], "topology cpu:999: 8 devices of that kind are here"),
        (
            ["--topology=cpu:8", "--batch=12"],
            "data.batch_size=12 must be a multiple of 8, which is",
        ),
        (["--topology=cpu:8", "--config.mesh.data=3"], "mesh.data=3 x mesh.fsdp=1"),
        (["--topology=cpu:8", "--slices=3"], "mesh.slices=3 does not divide the 8 devices"),
        (["--topology=cpu:8", "--slices=0"], "--slices=0 must be 1 or more"),
        (["--topology=cpu:8", "--slices=2", "--mesh.fsdp=8"], "4 devices of each of the 2 slices"),
        (["--topology=cpu:8", "--classes=0"], "--classes=0 must be 1 or more"),
        (["--config.optim.peak_rl=1"], "peak_rl"),
        (["--config.optim.peak_lr=fast"], "fast"),
        (["--bacth=8"], "bacth"),
    ],
)
def test_a_mistake_is_one_line(vitswin, arguments, message):
    status, out, err = vitswin("plan", RECIPE, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ") and message in err
    assert err.count("\n") == 1


def test_a_recipe_that_is_not_there_is_one_line(vitswin):
    status, _, err = vitswin("plan", "configs/nothing.py")
    assert status == 1
    assert "configs/nothing.py" in err and err.count("\n") == 1


def test_without_libtpu_it_says_what_to_install(vitswin, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, _, err = vitswin("plan", RECIPE, "--topology=v5e:4x4")
    assert status == 1
    assert err == (
        "error: topology v5e:4x4: libtpu compiles for TPUs and is not installed; pip "
        "install 'vitswin_jax[tpu]'.\n"
    )


@needs_libtpu
@pytest.mark.parametrize(
    "slices", [1, pytest.param(2, marks=pytest.mark.long)], ids="{} slices".format
)
def test_tpus_that_are_not_here(slices):
    """A step for slices of v5e, its program's collectives and all; nothing but the result."""
    command = [sys.executable, "-m", "vitswin_jax.cli", "plan", RECIPE, "--json", *KEYS]
    more = ["--topology=v5e:2x4", f"--slices={slices}", "--batch=16", "--config.model.scan=True"]
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(
        [*command, *more],
        env=environment | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert said["fits"] and said["mesh"]["data"] == 8
    assert said["usable"] == int(TPUS["v5e"].usable * 2**30)
    assert 0 < said["pace"]["share"] < 1
    if slices == 1:
        summed = said["traffic"]["all-reduce"]["nbytes"]
        assert summed == pytest.approx(said["memory"]["parameters"], rel=0.6)
        return
    assert said["mesh"]["slice"] == 2 and said["only_gradients"] is True
    sent = said["between_slices"]["all-reduce"]["nbytes"]
    assert sent < said["gradients"] < said["memory"]["parameters"] * 1.2


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "message"), [("v5e:3x3", "not divisible"), ("v5e", "invalid"), ("v5e:0x2", "hosts")]
)
def test_a_slice_that_cannot_be_is_one_line(vitswin, name, message):
    status, _, err = vitswin("plan", RECIPE, f"--topology={name}")
    assert status == 1
    assert message in err and err.endswith("a valid one is v5e:4x4.\n")
    assert err.count("\n") == 1
