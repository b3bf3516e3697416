"""A resume knows its data: real runs that are refused, and then end as if nothing had been."""

import shutil

import numpy as np
import pytest
from PIL import Image
from test_trainer import assert_same_weights

CLASSES = ("daisy", "rose", "tulip")
SETTINGS = {
    "optim.epochs": 2.0,
    "optim.warmup_epochs": 0.0,
    "data.batch_size": 8,
    "data.eval_batch_size": 8,
    "run.eval_epochs": 1.0,
    "run.checkpoint_epochs": 0.6,
}
FLAGS = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
STEPS = 11  # two epochs of 45 images


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """Twenty images of each of three classes, a quarter of which are held out."""
    root = tmp_path_factory.mktemp("data") / "flowers"
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def whole(train, flowers, tmp_path_factory):
    """The workdir of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = train(workdir, f"--config.data.dataset={flowers}", *FLAGS)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture
def stopped(whole, tmp_path):
    """The workdir of that run before its last checkpoint."""
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    (workdir / "model.safetensors").unlink()
    return workdir


CHANGES = {
    "added": (
        lambda root: shutil.copy(root / "rose/1.png", root / "rose/20.png"),
        "images, now ",
    ),
    "removed": (lambda root: (root / "rose/1.png").unlink(), "'rose' had "),
    "label": (lambda root: (root / "rose/1.png").rename(root / "tulip/77.png"), "'rose' had "),
    "renamed": (
        lambda root: (root / "rose").rename(root / "rosa"),
        "classes 'rosa' added, 'rose' removed",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("change", CHANGES)
def test_a_resume_on_changed_data_is_refused_and_on_the_old_ends_bit_equal(
    train, flowers, whole, stopped, tmp_path, change
):
    other = tmp_path / "elsewhere"
    shutil.copytree(flowers, other)
    make, line = CHANGES[change]
    make(other)
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    done = train(stopped, f"--config.data.dataset={other}", *FLAGS)
    assert done.returncode == 1
    (told,) = done.stderr.strip().splitlines()
    assert told.startswith(f"error: {stopped}: its t") and " data changed since step " in told
    assert line in told and told.endswith(
        "; add --accept_changed_data to resume on the changed data."
    )
    assert before == {path: path.read_bytes() for path in before}
    shutil.rmtree(other)
    shutil.copytree(flowers, other)  # the same data elsewhere
    done = train(stopped, f"--config.data.dataset={other}", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert_same_weights(whole, stopped)


@pytest.mark.long
def test_changed_data_are_trained_on_where_the_user_accepts_them(train, flowers, stopped, tmp_path):
    other = tmp_path / "elsewhere"
    shutil.copytree(flowers, other)
    (other / "rose").rename(other / "rosa")
    flags = [f"--config.data.dataset={other}", *FLAGS]
    done = train(stopped, *flags, "--accept_changed_data")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "changed" in line]
    assert len(lines) == 1 and lines[0].endswith(
        "; the run resumes on the changed data, as accepted."
    ), lines
    assert train(stopped, *flags).returncode == 0
    back = train(stopped, f"--config.data.dataset={flowers}", *FLAGS)
    assert "classes 'rose' added, 'rosa' removed" in back.stderr
