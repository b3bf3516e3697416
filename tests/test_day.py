"""A user's day: real commands in a folder with pictures and nothing else.

The installation of this day is tests/test_wheel.py and tests/test_installation.py, and its
notebooks are tests/test_notebooks.py.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import given
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax import load_metadata, load_pretrained

pytestmark = pytest.mark.long

TRAIN = (
    "train folder:vit_tiny_patch16_224 ./flowers --img-size 32 --batch-size 8 "
    "--model.embed_dim=48 --model.depth=2 --run.eval_epochs=2 --run.checkpoint_epochs=2"
)
PHOTO = "flowers/tulip/0001.jpg"


@dataclass
class Day:
    """The folder in which a user types commands."""

    folder: Path
    environment: dict[str, str]

    def start(self, command):
        """Starts `vitswin COMMAND` as a terminal does."""
        return subprocess.Popen(
            [sys.executable, "-m", "vitswin_jax.cli", *shlex.split(command)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder,
            env=self.environment, start_new_session=True,
        )  # fmt: skip

    def end(self, process, status=0):
        """Returns what a command printed; it must end with this status and no traceback."""
        told, _ = process.communicate(timeout=240)
        assert process.returncode == status, told
        assert "Traceback" not in told
        return told

    def __call__(self, command):
        """Runs `vitswin COMMAND`; returns what it printed."""
        return self.end(self.start(command))

    def start_and_wait(self, command, file):
        """Starts a command; returns its process when a file of it is there."""
        process = self.start(command)
        while process.poll() is None and not (self.folder / file).exists():
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        return process


@pytest.fixture(scope="module")
def day(tmp_path_factory, environment):
    """A folder with photographs of two kinds of flowers."""
    folder = tmp_path_factory.mktemp("day")
    given.THINGS["flowers"](folder / "flowers")
    return Day(folder, environment | {"PYTHONPATH": str(given.ROOT), "WANDB_MODE": "offline"})


@pytest.fixture(scope="module")
def first(day):
    """A run that has ended."""
    assert "test accuracy" in day(f"{TRAIN} --name first --epochs 4")
    return day.folder / "runs" / "first"


def test_a_minute_is_enough_for_a_model(day):
    began = time.monotonic()
    told = day("train ./flowers --minutes 1 --name minute")
    assert time.monotonic() - began < 90
    assert "minutes: learning rate" in told and "test accuracy" in told
    files = {path.name for path in (day.folder / "runs" / "minute").iterdir()}
    assert {"recipe.py", "report.html", "model.safetensors"} <= files
    assert "tulip" in day(f"predict runs/minute {PHOTO}")


def test_a_run_is_used_amid_training_and_interrupted_resumed_stopped_and_extended(day):
    command = f"{TRAIN} --name long"
    training = day.start_and_wait(f"{command} --epochs 900", "runs/long/model.safetensors")
    assert re.search(r"tulip +\d+\.\d\d %", day(f"predict runs/long {PHOTO}"))
    assert re.search(r"long +running", day("runs runs/"))
    os.killpg(training.pid, signal.SIGINT)
    told = day.end(training, status=130)
    step = int(re.search(r"stopped by Ctrl-C at step (\d+) of 2700; all is saved", told).group(1))

    (day.folder / "runs" / "long" / "model.safetensors").unlink()  # so that a new one is seen
    training = day.start_and_wait(f"{command} --epochs 900", "runs/long/model.safetensors")
    assert "ends after its next step" in day("stop runs/long")
    told = day.end(training)
    assert f"resumed: after step {step} " in told
    stopped = int(re.search(r"ends after (\d+) of 2700, as requested", told).group(1))
    assert load_metadata(day.folder / "runs" / "long").provenance["step"] == stopped > step
    assert re.search(r"long +stopped", day("runs runs/"))

    for epochs in (stopped // 3 + 2, stopped // 3 + 4):
        told = day(f"{command} --epochs {epochs}")
        assert "the learning rate schedule is recomputed" in told and "test accuracy" in told
        assert load_metadata(day.folder / "runs" / "long").provenance["step"] == 3 * epochs
    assert re.search(r"long +done", day("runs runs/"))


def test_other_data_has_a_page_of_its_own(day, first):
    given.THINGS["flowers"](day.folder / "others")
    before = {path: path.read_bytes() for path in first.iterdir() if path.is_file()}
    assert "./others:test, 8 images" in day("evaluate runs/first ./others")
    after = {path: path.read_bytes() for path in first.iterdir() if path.is_file()}
    (page,) = after.keys() - before.keys()
    assert page.name.startswith("evaluation-others-test") and "others" in page.read_text()
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize(
    ("flag", "field", "value"),
    [("--model.in_chans=1", "in_chans", 1), ("--img-size 64x48", "img_size", (64, 48))],
    ids=["one channel", "rectangles"],
)
def test_fine_tuning_for_images_of_another_shape(day, first, flag, field, value):
    name = f"other-{field}"
    day(f"train ./flowers --init-from runs/first --name {name} --batch-size 8 --epochs 2 {flag}")
    assert load_metadata(day.folder / "runs" / name).fields[field] == value
    assert "tulip" in day(f"predict runs/{name} {PHOTO}")


def test_a_run_is_logged_to_wandb_offline(day):
    pytest.importorskip("wandb")
    day(f"{TRAIN} --name logged --epochs 2 --loggers=wandb --project=flowers")
    (log,) = (day.folder / "runs" / "logged" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"test/accuracy" in log.read_bytes()


def test_the_weights_load_in_timm(day, first):
    told = day("convert runs/first flowers-timm --to timm --verify")
    assert "largest difference of the logits: 0 " in told
    timm = pytest.importorskip("timm")
    torch = pytest.importorskip("torch")
    theirs = timm.create_model(f"local-dir:{day.folder / 'flowers-timm'}", pretrained=True).eval()
    ours, variables = load_pretrained(first)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(ours.apply(variables, jnp.asarray(images)), logits, atol=1e-5)
