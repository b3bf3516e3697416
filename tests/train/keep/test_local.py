"""A set on the host's own disk comes back bit for bit, or is passed over with the reason."""

import errno
import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vitswin_jax.train.keep import local, local_file
from vitswin_jax.train.keep.checkpoint import Checkpoints
from vitswin_jax.train.keep.local import LocalSets, identity
from vitswin_jax.train.keep.workdir import LOCAL
from vitswin_jax.train.sharding import create_mesh
from vitswin_jax.train.state import TrainState

DATA = {"train": {"counts": [1, 2]}}
CONFIG = {"model": {"name": "vit"}, "optim": {"peak_lr": 0.1}, "run": {"local_dir": "a"}}


def make_state(step, fsdp=2):
    """A state of numbers that only `step` gives, its kernel divided over the mesh."""
    mesh = create_mesh(fsdp=fsdp)
    rng = np.random.default_rng(step)
    params = {"head": {"kernel": rng.normal(size=(16, 8)).astype("f4"), "scale": np.float32(step)}}
    moments = jax.tree.map(lambda leaf: leaf.astype(jax.numpy.bfloat16), params)
    state = TrainState(np.int32(step), params, {"mu": moments, "on": np.array([True, False])}, None)

    def place(leaf):
        return jax.device_put(leaf, NamedSharding(mesh, P("fsdp") if leaf.ndim == 2 else P()))

    return jax.tree.map(place, state)


def layout_of(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


@pytest.fixture
def opened(tmp_path):
    """Opens the checkpoints and the local sets of a run; keys change what it is."""
    workdir = tmp_path / "run"
    workdir.mkdir()

    def opened(config=CONFIG, data=DATA, total_steps=100, seconds=1e-6):
        sets = LocalSets(
            str(tmp_path / "disk"),
            workdir,
            owner=identity(workdir, config),
            data=data,
            seconds=seconds,
            total_steps=total_steps,
        )
        return Checkpoints(workdir / "checkpoints", newest=9, data=data, local=sets)

    return opened


def save(opened, *steps, local=True):
    with opened() as checkpoints:
        for step in steps:
            checkpoints.save(make_state(step), next_batch=step, local=local)


def restore(opened, fsdp=2, **changes):
    """Returns the state from which a run resumes, its step, and whether it was on the disk."""
    start = make_state(0, fsdp)
    with opened(**changes) as checkpoints:
        state, step = checkpoints.restore_or(lambda: start, layout_of(start))
        return state, step, checkpoints.restored_locally


def sets_in(tmp_path):
    files = (tmp_path / "disk").rglob("*")
    return sorted(path.relative_to(tmp_path / "disk").name for path in files if path.is_file())


def test_the_newest_two_are_kept_and_the_newest_comes_back(opened, tmp_path, caplog):
    save(opened, 3, 4, 5)
    assert sets_in(tmp_path) == ["4.safetensors", "5.safetensors"]
    caplog.set_level("INFO")
    state, step, from_disk = restore(opened)
    assert (step, from_disk) == (5, True) and "local set of step 5: used, from " in caplog.text
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(make_state(5)), strict=True):
        assert (one.dtype, one.sharding) == (two.dtype, two.sharding)
        np.testing.assert_array_equal(one, two)


def test_a_checkpoint_that_is_as_new_is_taken_instead(opened, tmp_path, caplog):
    save(opened, 4)
    save(opened, 4, local=False)
    caplog.set_level("INFO")
    assert restore(opened)[1:] == (4, False)
    assert "local set" not in caplog.text
    save(opened, 5)
    (tmp_path / "run" / "checkpoints" / "4" / "meta" / "metadata").unlink()
    assert restore(opened)[1:] == (5, True)


def test_sets_later_than_the_step_that_is_resumed_are_removed(opened, tmp_path):
    save(opened, 2, local=False)
    save(opened, 7, 8)
    left = next((tmp_path / "disk").rglob("8.safetensors")).with_name(".9.safetensors.1.tmp")
    left.write_bytes(b"half a set")
    assert restore(opened, data={})[1] == 2
    assert sets_in(tmp_path) == []


def forget(tmp_path):
    (tmp_path / "run" / LOCAL).unlink()


def cut(tmp_path):
    path = next((tmp_path / "disk").rglob("5.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])


def flip(tmp_path):
    path = next((tmp_path / "disk").rglob("5.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def rename(tmp_path):
    path = next((tmp_path / "disk").rglob("5.safetensors"))
    path.rename(path.with_name("6.safetensors"))


def forge(tmp_path):
    path = next((tmp_path / "disk").rglob("5.safetensors"))
    with safe_open(path, "numpy") as file:
        meta = json.loads(file.metadata()["vitswin_jax"])
    meta["arrays"] = {}
    save_file(load_file(path), path, metadata={"vitswin_jax": json.dumps(meta)})


def replace(tmp_path):
    path = next((tmp_path / "disk").rglob("5.safetensors"))
    path.write_bytes(b"\0" * 100)


NOT_USED = {
    "cut off": (cut, {}, "it is damaged"),
    "a bit flipped": (flip, {}, r"\S+ is not what was written"),
    "another file": (replace, {}, "it is damaged"),
    "of another step": (rename, {}, "it is damaged"),
    "another header": (forge, {}, "it is damaged"),
    "a new run in the same place": (forget, {}, "it is of another run"),
    "another config": (None, {"config": CONFIG | {"seed": 1}}, "it is of another config"),
    "other data": (None, {"data": {}}, "it is of other data"),
    "a shorter run": (None, {"total_steps": 4}, "it is later than the run's end, step 4"),
    "another mesh": (None, {"fsdp": 4}, "it does not have this host's parts"),
}


@pytest.mark.parametrize(("damage", "changes", "reason"), NOT_USED.values(), ids=NOT_USED)
def test_a_set_is_passed_over_in_a_line_with_the_reason(
    opened, tmp_path, caplog, damage, changes, reason
):
    save(opened, 5)
    if damage is not None:
        damage(tmp_path)
    caplog.set_level("INFO", logger="vitswin_jax.train.keep.local")
    assert restore(opened, **changes)[1:] == (0, False)
    lines = [r.getMessage() for r in caplog.records if r.name == "vitswin_jax.train.keep.local"]
    assert len(lines) == 1
    assert re.fullmatch(rf"local set of step [56]: passed over: {reason}\.", lines[0])


def test_keys_that_may_change_leave_a_set_as_it_is(opened):
    save(opened, 5)
    assert restore(opened, config=CONFIG | {"run": {"local_dir": "b"}})[1:] == (5, True)


def test_a_full_disk_is_one_warning(opened, tmp_path, caplog, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    save(opened, 1)
    with monkeypatch.context() as patch:
        patch.setattr(local_file.safetensors.numpy, "save_file", full)
        save(opened, 2, 3)
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "No space left on device; training continues" in line and "step 2" in line
    assert sets_in(tmp_path) == ["1.safetensors"]


def test_the_folder_is_gone_after_the_run_and_another_runs_sets_are_not(opened, tmp_path):
    save(opened, 1)
    (folder,) = (tmp_path / "disk").iterdir()
    other = tmp_path / "disk" / "other-00000000" / "host-0" / "1.safetensors"
    other.parent.mkdir(parents=True)
    other.touch()
    with opened() as checkpoints:
        checkpoints.local.remove()
    assert not folder.exists() and other.exists()


def test_a_set_is_due_by_the_clock(opened, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with opened(seconds=10.0) as checkpoints:
        due = []
        for step, passed in enumerate([9.0, 1.0, 1.0, 8.0, 1.0]):
            now[0] += passed
            due.append(checkpoints.local.due(step))
        assert due == [False, True, False, False, True]
