"""Runs of several hosts in an object store: host 0 copies, and all end with the same line."""

import contextlib
import re
import shutil
from pathlib import Path

import pytest
from fixtures_hosts import CHANGES, end, errors, metrics_of, wait_until
from fixtures_train import ROOT, assert_same_weights

from vitswin_jax.core.cache import cache_dir
from vitswin_jax.core.types import UserError
from vitswin_jax.train.hosts.join import EveryHostError
from vitswin_jax.train.keep.working import _on_host_0, working_in

URL = "memory://bucket/runs/x"


@pytest.fixture
def store(tmp_path):
    """The folder of the store of `begin`."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def begin(start, tmp_path, store):
    """Starts two hosts of a run in a store; `cache` is the folder of the copy."""

    def begin(*flags, cache=tmp_path / "cache", **keys):
        if (prepared := cache_dir() / "digits").is_dir() and Path(cache).is_absolute():
            cache.mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):
                (cache / "digits").symlink_to(prepared)
        more = {"VITSWIN_CACHE": str(cache), "STORE": str(store)}
        more["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
        scripts = {0: [ROOT / "tests" / "train_in_store.py"]}  # who writes there
        return start(URL, 2, *CHANGES, *flags, scripts=scripts, more=more, **keys)

    return begin


def copy_in(cache):
    """The folder of the only copy in a cache."""
    return next(iter((cache / "stored" / "runs").glob("*/run")), Path("none"))


@pytest.mark.long
def test_hosts_in_a_store_are_killed_and_resume_with_another_copy_bit_for_bit(
    begin, start, store, tmp_path
):
    both = begin("--config.mesh.fsdp=2")
    run = store / "bucket" / "runs" / "x"
    wait_until(both, lambda: list(run.glob("checkpoints/*.json")))
    copy = copy_in(tmp_path / "cache")
    rows = len(metrics_of(copy))
    wait_until(both, lambda: len(metrics_of(copy)) > rows)
    both[1].kill()
    (line,) = errors(end(both)[:1])
    assert line.startswith("error: lost host 1; to resume from the last checkpoint, repeat the")
    shutil.rmtree(tmp_path / "cache")
    ended = end(begin("--config.mesh.fsdp=2", cache=tmp_path / "another"))
    assert [status for status, *_ in ended] == [0, 0], ended
    told = ended[0][2]
    assert "objects copied here in " in told and "resumed: after step " in told, told
    assert f"report: {URL}/report.html" in ended[0][1]
    whole = end(start(tmp_path / "whole", 2, *CHANGES, "--config.mesh.fsdp=2"))
    assert [status for status, *_ in whole] == [0, 0], whole
    assert_same_weights(tmp_path / "whole", run)
    assert {path.name for path in (run / "goodput").iterdir()} == {
        path.name for path in (copy_in(tmp_path / "another") / "goodput").iterdir()
    }


@pytest.mark.long
def test_hosts_that_do_not_see_the_copy_are_one_line_on_each(begin, tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
    for line in errors(end(begin(cache="cache", folders=folders))):
        assert line == (
            f"error: host 1: {URL}: this host does not see host 0's copy of the workdir, below "
            "cache; on several hosts set VITSWIN_CACHE to a folder that all of them see, or mount "
            "the bucket (docs/hosts.md)."
        )


@pytest.mark.long
def test_a_store_that_refuses_is_one_line_on_each_and_keeps_what_is_missing(begin, store, tmp_path):
    (store / "denied").touch()
    for line in errors(end(begin())):
        assert re.fullmatch(
            rf"error: host 0: {URL}/.run.json: cannot be written: permission is denied for these "
            r"credentials\.",
            line,
        )
    (store / "denied").unlink()
    both = begin()
    wait_until(both, lambda: metrics_of(copy_in(tmp_path / "cache")))
    (store / "denied").touch()
    for status, out, told in end(both):
        line = told.strip().splitlines()[-1]
        assert status == 1 and "Traceback" not in told and "report:" not in out, told
        assert line.startswith(f"error: host 0: {URL}/"), told
        assert line.endswith("the files are on this host, and the same command copies them.")
    (store / "denied").unlink()
    assert [status for status, *_ in end(begin())] == [0, 0]
    assert (store / "bucket" / "runs" / "x" / "model.safetensors").exists()


def test_a_full_disk_names_the_copy_and_the_key_that_moves_it(tmp_path, monkeypatch):
    monkeypatch.setenv("VITSWIN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError) as error, working_in(f"memory://bucket{tmp_path}/x") as folder:
        raise UserError(f"cannot write {folder}/best.safetensors: No space left on device.")
    assert str(error.value) == (
        f"cannot write memory://bucket{tmp_path}/x/best.safetensors: No space left on device; this "
        f"is the copy below {tmp_path / 'cache'} (VITSWIN_CACHE)."
    )


@pytest.mark.parametrize("error", [None, EveryHostError("all"), UserError("one"), KeyError("bug")])
def test_a_context_of_host_0_sees_the_error_that_ends_it(error):
    seen = []

    class Context:
        def __enter__(self):
            seen.append("in")

        def __exit__(self, kind, value, trace):
            seen.append(value)

    def block():
        with _on_host_0(Context()):
            if error is not None:
                raise error

    if error is None:
        block()
    else:
        with pytest.raises(type(error)) as raised:
            block()
        assert raised.value is error
    assert seen == ["in", error]
