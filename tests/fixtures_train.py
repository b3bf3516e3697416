"""Small runs on the digits, in a process of their own where that is the point."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from xla_flags import UNOPTIMISED

ROOT = Path(__file__).parents[1]
PROGRESS = ("step", "trains", "left out:", "resumed:", "compil")  # how lines begin that tell it
OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")

TINY = {
    "optim.epochs": 0.4,
    "optim.warmup_epochs": 0.1,
    "data.batch_size": 64,
    "data.eval_batch_size": 64,
    "run.log_steps": 2,
    "run.eval_epochs": 0.2,
    "run.checkpoint_epochs": 0.1,
    "augment.mixup_alpha": 0.2,
    "augment.cutmix_alpha": 1.0,
}
UNLABELLED = {  # 6 steps, with two evaluations and three checkpoints
    "optim.epochs": 0.0,
    "optim.total_steps": 6,
    "data.eval_batch_size": 64,
    "run.log_steps": 2,
    "run.eval_epochs": 0.0,
    "run.eval_steps": 3,
    "run.checkpoint_epochs": 0.0,
    "run.checkpoint_steps": 2,
    "pretrain.probe_images": 100,
}
MODELS = {
    "vit": {"embed_dim": 16, "depth": 2, "num_heads": 2},
    "swin": {"embed_dim": 8, "num_heads": (2, 2), "depths": (2, 1)},
}


def without_times(rows):
    """Rows of metrics, in the order of their steps, but for what depends on the clock."""
    kept = [
        {key: row[key] for key in row if not key.startswith(("time/", "images_per_second"))}
        for row in rows
    ]
    return sorted(kept, key=lambda row: (row["step"], "test/loss" in row))


@pytest.fixture(scope="module")
def make_config():
    """Returns the digits' recipe, cut down to 8 steps of a tiny model."""
    sys.path.insert(0, str(ROOT))
    from configs import digits

    def make_config(family="vit", **changes):
        config = digits.get_config(family)
        tiny = {f"model.{key}": value for key, value in MODELS[family].items()}
        config.update_from_flattened_dict(TINY | tiny | changes)
        return config

    yield make_config
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="session")
def train_command():
    """Returns the command line of train.py with the same cut-down recipe."""

    def train_command(workdir, *more, family="vit"):
        tiny = TINY | {f"model.{key}": value for key, value in MODELS[family].items()}
        keys = [f"--config.{key}={value}" for key, value in tiny.items()]
        recipe = f"--config={ROOT / 'configs' / 'digits.py'}:{family}"
        return [
            sys.executable,
            str(ROOT / "train.py"),
            recipe,
            f"--workdir={workdir}",
            *keys,
            *more,
        ]

    return train_command


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """The environment of runs in processes of their own: one device, programs compiled once."""
    cache = tmp_path_factory.mktemp("compiled")
    return os.environ | {
        "XLA_FLAGS": UNOPTIMISED,
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="module")
def train(train_command, environment):
    """Runs train.py to its end; returns the finished process."""

    def train(workdir, *more, family="vit"):
        return subprocess.run(
            train_command(workdir, *more, family=family),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env=environment,
        )

    return train


def may_mount():
    """Whether this system lets a process have file systems of its own."""
    if shutil.which("unshare") is None:
        return False
    mount = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def assert_same_weights(one, other):
    """Compares two runs' final parameters bit for bit."""
    ours, theirs = (load_file(Path(workdir) / "model.safetensors") for workdir in (one, other))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
