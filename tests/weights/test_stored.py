"""Runs in object stores as commands read them, by fsspec's in-memory one."""

import json
from pathlib import Path

import pytest

from vitswin_jax.core.store import Store
from vitswin_jax.core.types import UserError
from vitswin_jax.weights.stored import LEASE, local_numbers, local_weights, trains_there


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("VITSWIN_CACHE", str(tmp_path / "cache"))
    store = Store(f"memory://bucket{tmp_path}/runs")
    for step in (3, 6):
        store.write(f"x/checkpoints/{step}/meta/metadata", b"12")
        store.write(f"x/checkpoints/{step}.json", b'{"files": {"meta/metadata": 2}}')
    store.write("x/config.json", b"{}")
    store.write("x/goodput/host-0.jsonl", b"")
    store.write(f"x/{LEASE}", json.dumps({"trains": True}).encode())
    return store


def files(folder):
    from pathlib import Path

    found = (
        path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()
    )
    return {name for name in found if name != ".marks.json"}


def test_only_what_is_read_is_copied(store):
    url = f"{store.url}/x"
    newest = {"config.json", "checkpoints/6/meta/metadata"}
    assert files(local_weights(url)) == newest
    assert files(local_weights(f"{url}@3")[:-2]) == {"config.json", "checkpoints/3/meta/metadata"}
    store.write("x/model.safetensors", b"1")
    assert files(local_weights(url)) == {"config.json", "model.safetensors"}
    assert files(local_numbers(store.url)) == {
        "x/config.json",
        "x/goodput/host-0.jsonl",
        f"x/{LEASE}",
    }


def test_what_has_changed_is_copied_again_and_what_is_gone_is_removed(store):
    url = f"{store.url}/x"
    store.write("x/model.safetensors", b"1")
    store.write("x/best.safetensors", b"1")
    folder = local_weights(url)
    store.write("x/model.safetensors", b"2")
    store.remove(["x/best.safetensors"])
    assert local_weights(url) == folder
    assert files(folder) == {"config.json", "model.safetensors"}
    assert Path(folder, "model.safetensors").read_bytes() == b"2"


def test_one_file_is_copied(store):
    store.write("vit.safetensors", b"3")
    assert Path(local_weights(f"{store.url}/vit.safetensors")).read_bytes() == b"3"


def test_a_run_that_trains_is_seen(store, tmp_path):
    folder = local_numbers(store.url)
    assert trains_there(folder / "x") is True
    assert trains_there(tmp_path) is None


def test_nothing_there_is_one_line(store):
    with pytest.raises(UserError, match=r"/none: no such object; a weights file or"):
        local_weights(f"{store.url}/none")
    assert local_weights("runs/x") == "runs/x"
