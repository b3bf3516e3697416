"""What was saved comes back bit for bit, or is named and the one before comes back."""

import asyncio
import errno
import gc
import logging
import os
import random
import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from kinds import mostly_long

from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep.checkpoint import Checkpoints
from vitswin_jax.train.sharding import create_mesh
from vitswin_jax.train.state import TrainState
from vitswin_jax.weights.formats.orbax import checksum

ROWS = 256  # of the kernel: noise, which does not compress


def make_state(step, *, mesh=None, rows=ROWS, ema=True):
    """A state of numbers that only `step` gives, its kernel divided over the mesh."""
    mesh = create_mesh(fsdp=2) if mesh is None else mesh
    rng = np.random.default_rng(step)
    params = {
        "block_0": {"kernel": rng.normal(size=(rows, 64)).astype(np.float32)},
        "head": {"bias": np.zeros(10, np.float32), "scale": rng.normal(size=()).astype("float32")},
    }
    moments = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    opt_state = (optax.EmptyState(), optax.TraceState(moments), {"on": np.array([True, False])})
    state = TrainState(np.int32(step), params, opt_state, params if ema else None)

    def place(leaf):
        spec = P("fsdp", "data") if leaf.ndim == 2 else P()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(place, state)


def layout_of(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def assert_same(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        assert (one.dtype, one.sharding) == (two.dtype, two.sharding)
        np.testing.assert_array_equal(one, two)


def save(folder, *steps, make=make_state, **keep):
    """Saves a state a step, as runs of one checkpoint each would."""
    for step in steps:
        with Checkpoints(folder, **{"newest": 9} | keep) as checkpoints:
            checkpoints.save(make(step), next_batch=step, metrics={"test/accuracy": 0.5})


def restore(folder, like):
    """Returns what a run would resume from."""
    with Checkpoints(folder, newest=9) as checkpoints:
        return checkpoints.restore_or(lambda: pytest.fail("starts again"), layout_of(like))


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints of steps 2 and 12, for copies to be damaged."""
    folder = tmp_path_factory.mktemp("two")
    save(folder, 2, 12)
    return folder


@pytest.fixture
def saved(two, tmp_path):
    return shutil.copytree(two, tmp_path / "checkpoints")


MESHES = [{}, {"fsdp": 8, "data": 1}, {"fsdp": 2, "tensor": 2}, {"data": 1}]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_a_state_comes_back_on_any_mesh_bit_for_bit(two, sizes):
    mesh = create_mesh(**sizes)
    like = make_state(12, mesh=mesh)
    state, next_batch = restore(two, make_state(0, mesh=mesh))
    assert next_batch == 12
    assert_same(state, like)


def test_an_empty_folder_starts_at_the_beginning(tmp_path):
    start = make_state(0)
    with Checkpoints(tmp_path / "new", newest=1) as checkpoints:
        assert checkpoints.restore_or(lambda: start, layout_of(start)) == (start, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_a_checksum_is_that_of_a_loop_and_sees_every_bit(dtype):
    array = np.random.default_rng(0).integers(0, 2, (3, 2, 2)).astype(jnp.dtype(dtype))
    size, total = array.dtype.itemsize, 0
    words = np.frombuffer(array.tobytes(), f"<u{size}").reshape(array.shape)
    for index, word in np.ndenumerate(words):
        place = 0
        for i in index:
            place = (place * 0x9E3779B1 + i) % 2**32
        total += int(word) * (2 * place + 1)
    ours = jax.jit(checksum)
    assert int(ours(jnp.asarray(array))) == total % 2**32
    for bit in range(1 if dtype == "bool" else 8 * size):
        flipped = words.copy()
        flipped[1, 0, 1] ^= np.array(1 << bit, words.dtype)
        assert int(ours(jnp.asarray(flipped.view(array.dtype)))) != total % 2**32


def largest(folder):
    """The file with the arrays of an item."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def truncate(folder):
    path = largest(folder / "params")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(folder):
    path = largest(folder / "opt_state")
    path.write_bytes(bytes(path.stat().st_size))


def flip(folder):
    path = largest(folder / "params")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def forge(folder):
    path = folder / "meta" / "metadata"
    path.write_text(path.read_text().replace('"next_batch": 12', '"next_batch": 13'))


DAMAGES = {
    "truncated": (truncate, 'params cannot be read: .*"block_0.kernel/'),
    "overwritten": (zero, "opt_state cannot be read: .*ZSTD"),
    "flipped": (flip, "params/block_0/kernel is not what was written"),
    "no array file": (lambda f: largest(f / "ema").unlink(), "ema cannot be read: .*kernel"),
    "no manifest": (
        lambda f: (f / "params" / "manifest.ocdbt").unlink(),
        "params cannot be read: NOT_FOUND",
    ),
    "no item": (lambda f: shutil.rmtree(f / "opt_state"), "opt_state cannot be read: NOT_FOUND"),
    "empty": (empty, "meta/metadata is missing"),
    "no meta": (lambda f: shutil.rmtree(f / "meta"), "meta/metadata is missing"),
    "meta cut": (lambda f: os.truncate(f / "meta/metadata", 40), "meta/metadata is not JSON"),
    "meta forged": (forge, "meta/metadata is not what was written"),
    "metrics": (lambda f: (f / "metrics/metrics").write_text("{}"), "metrics/metrics is not what"),
    "metadata": (
        lambda f: (f / "_CHECKPOINT_METADATA").write_text("{"),
        "_CHECKPOINT_METADATA is not JSON",
    ),
    "another step's": (
        lambda f: (shutil.rmtree(f), shutil.copytree(f.parent / "2", f)),
        "meta/metadata is of step 2",
    ),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    saved, caplog, capfd, damage, reason
):
    damage(saved / "12")
    with caplog.at_level(logging.WARNING, "vitswin_jax"):
        state, next_batch = restore(saved, make_state(0))
    assert next_batch == 2
    assert_same(state, make_state(2))
    (line,) = caplog.messages
    assert line.startswith(f"{saved / '12'}: damaged: ") and "\n" not in line and len(line) < 500
    assert line.endswith("; it is now 12.damaged-1, and step 2 is used.")
    assert re.search(reason, line), line
    assert (saved / "12.damaged-1").is_dir()
    save(saved, 12)
    state, next_batch = restore(saved, make_state(0))
    assert_same(state, make_state(12))
    assert capfd.readouterr().err == ""


def test_no_flipped_bit_anywhere_is_taken_for_the_truth(saved, two):
    """Either the state is what was saved, or the checkpoint is not used."""
    dice, skipped = random.Random(0), 0
    parts = [saved / "12" / name for name in ("opt_state", "ema")]  # as params is
    files = sorted(path for path in (saved / "12").rglob("*") if path.is_file())
    files = [path for path in files if not any(path.is_relative_to(part) for part in parts)]
    for path in files:
        content = bytearray(path.read_bytes())
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
        state, next_batch = restore(saved, make_state(0))
        assert_same(state, make_state(next_batch))
        skipped += next_batch == 2
        shutil.rmtree(saved)
        shutil.copytree(two, saved)
    assert 4 < skipped < len(files)


@pytest.mark.parametrize("name", ["9" * 30, "\u00b2", "013", "x", "13.orbax-checkpoint-tmp"])
@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("")])
def test_what_else_is_in_the_folder_stops_nothing(saved, name, make):
    make(saved / name)
    assert_same(restore(saved, make_state(0))[0], make_state(12))
    save(saved, 14)
    assert_same(restore(saved, make_state(0))[0], make_state(14))


def test_a_file_where_a_checkpoint_is_expected_is_damaged(saved, caplog):
    (saved / "13").write_text("")
    assert_same(restore(saved, make_state(0))[0], make_state(12))
    assert f"{saved / '13'}: damaged" in caplog.text
    assert (saved / "13.damaged-1").is_file()


def test_a_file_where_their_folder_is_expected_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match=r"/checkpoints: cannot be read \(Not a directory\)\.$"):
        restore(tmp_path / "checkpoints", make_state(0))


def test_where_all_are_damaged_each_is_named_and_nothing_is_touched(saved):
    truncate(saved / "12")
    forge(saved / "12")
    (saved / "2" / "meta" / "metadata").unlink()
    each = r"12 \(meta/metadata is not what .*\); 2 \(meta/metadata is missing\)\. "
    with pytest.raises(UserError, match=f"{saved}: every checkpoint is damaged: {each}") as error:
        restore(saved, make_state(0))
    assert "\n" not in str(error.value) and steps_in(saved) == [2, 12]


def test_damage_of_older_ones_is_told_before_it_stops_the_run(saved, caplog):
    (saved / "2" / "metrics" / "metrics").write_text("{")
    with caplog.at_level(logging.WARNING, "vitswin_jax"):
        state, _ = restore(saved, make_state(0))
    assert_same(state, make_state(12))
    assert caplog.messages == [
        f"{saved / '2'}: damaged: metrics/metrics is not JSON; it is now 2.damaged-1, and step 12 "
        "is used."
    ]


def test_another_models_checkpoint_is_refused_with_all_that_differs(saved, capfd):
    with pytest.raises(UserError, match="a checkpoint of another model or optimizer: ") as error:
        restore(saved, make_state(0, rows=128, ema=False))
    told = str(error.value)
    assert "\n" not in told and f"{saved / '12'}: " in told
    assert "params/block_0/kernel is float32 (256, 64) and must be float32 (128, 64)" in told
    assert "nothing takes ema/head/bias" in told
    assert steps_in(saved) == [2, 12] and capfd.readouterr().err == ""
    save(saved, 13, make=lambda step: make_state(step, ema=False))
    with pytest.raises(UserError, match="ema/block_0/kernel is not in it; ema/head/bias is not"):
        restore(saved, make_state(0))


ACCURACIES = {1: 0.3, 2: 0.9, 3: 0.5, 4: None, 5: 0.9, 6: 0.1, 7: None, 8: 0.2}
KEPT = [
    ({"newest": 3}, [6, 7, 8]),
    ({"newest": 1, "best": 1}, [5, 8]),  # of equals the later
    ({"newest": 1, "best": 2}, [2, 5, 8]),
    ({"newest": 1, "best": 1, "every": 4}, [4, 5, 8]),
]


@pytest.mark.parametrize(("keep", "kept"), mostly_long(KEPT, KEPT[-1:]), ids=str)
def test_the_newest_the_best_and_every_so_often_are_kept(tmp_path, keep, kept):
    """Also by a run that was stopped in between."""
    for steps in (range(1, 6), range(6, 9)):
        with Checkpoints(tmp_path, **keep) as checkpoints:
            for step in steps:
                accuracy = ACCURACIES[step]
                metrics = {} if accuracy is None else {"test/accuracy": accuracy}
                checkpoints.save(make_state(step), next_batch=step, metrics=metrics)
    assert steps_in(tmp_path) == kept


def test_the_best_comes_back_without_its_optimizer(tmp_path, caplog):
    layout = layout_of(make_state(0))
    with Checkpoints(tmp_path, newest=2, best=1) as checkpoints:
        for step, accuracy in enumerate((0.5, 0.9, 0.7, 0.6), start=1):
            metrics = {"test/accuracy": accuracy, "test/loss": float("nan")}
            checkpoints.save(make_state(step), next_batch=step, metrics=metrics)
        assert_same(checkpoints.restore_best(layout), make_state(2).replace(opt_state=None))
        flip(tmp_path / "2")
        with caplog.at_level(logging.WARNING, "vitswin_jax"):
            best = checkpoints.restore_best(layout)
        assert_same(best, make_state(4).replace(opt_state=None))
    assert f"{tmp_path / '2'}: damaged" in caplog.text


def test_what_cannot_be_written_whole_ends_the_run_and_leaves_the_others(saved, capfd):
    """A limit of the system on the size of files stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError) as error, Checkpoints(saved, newest=9) as checkpoints:
            checkpoints.save(make_state(13), next_batch=13)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value) == (
        f"cannot write the checkpoint of step 13 in {saved}: File too large; the run stops, and "
        "the newest is of step 12."
    )
    assert capfd.readouterr().err == ""
    assert_same(restore(saved, make_state(0))[0], make_state(12))
    save(saved, 13)
    assert_same(restore(saved, make_state(0))[0], make_state(13))


def test_writes_that_fail_beside_the_one_that_is_told_say_nothing(tmp_path, caplog, monkeypatch):
    """Orbax asks for the first error only; which writes fail beside it is the disk's chance."""
    # A run that failed in this process before has left its filter, as it is to.
    monkeypatch.setattr(logging.getLogger("asyncio"), "filters", [])

    async def fail():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def nobody_asks():
        tasks = [asyncio.create_task(fail()) for _ in range(3)]
        await asyncio.wait(tasks)

    with Checkpoints(tmp_path, newest=1):
        asyncio.run(nobody_asks())
        gc.collect()
    assert not caplog.records
    asyncio.run(nobody_asks())
    gc.collect()
    assert len(caplog.records) == 3, "and for anybody else's it is logged again"


def test_a_folder_that_is_gone_ends_the_run(tmp_path, capfd):
    folder = tmp_path / "checkpoints"
    with (
        pytest.raises(UserError, match=r"cannot write the checkpoint of step 3 .*: Not a direct"),
        Checkpoints(folder, newest=9) as checkpoints,
    ):
        checkpoints.save(make_state(2), next_batch=2)
        checkpoints.wait()
        folder.rename(tmp_path / "moved")
        folder.write_text("")
        checkpoints.save(make_state(3), next_batch=3)
    assert capfd.readouterr().err == ""
    folder.unlink()
    (tmp_path / "moved").rename(folder)
    assert_same(restore(folder, make_state(0))[0], make_state(2))
