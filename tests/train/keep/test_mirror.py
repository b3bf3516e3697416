"""Workdirs in object stores, by fsspec's in-memory one: what is copied, and what is resumed."""

import errno
import json
import shutil
import threading
import time

import pytest

from vitswin_jax.core.store import Store, StoreError, folder_of
from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep import lease, mirror
from vitswin_jax.train.keep.lease import ask_to_stop
from vitswin_jax.train.keep.working import working_in
from vitswin_jax.weights.stored import LEASE


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setenv("VITSWIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "PERIOD", 0.05)
    monkeypatch.setattr(mirror, "_LAST_TRIES", (0.0, 0.01))
    monkeypatch.setattr(lease, "PERIOD", 0.05)
    monkeypatch.setattr(lease, "PATIENCE", 1.5)
    return f"memory://bucket{tmp_path}/x"


def save(folder, step, size=9):
    """Writes what stands for a checkpoint."""
    place = folder / "checkpoints" / str(step)
    for name in ("params/d/1", "params/manifest.ocdbt", "meta/metadata"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(bytes(size))


def leave(url):
    """Forgets this host's copy, as another host has none."""
    shutil.rmtree(folder_of(url, "runs"))


def until(true):
    give_up = time.monotonic() + 10
    while not true() and time.monotonic() < give_up:
        time.sleep(0.02)
    assert true()


def names(url):
    return set(Store(url).list()) - {LEASE}


def test_what_a_run_writes_is_there_and_comes_back_on_another_host(url):
    with working_in(url) as folder:
        (folder / "config.json").write_text("{}", encoding="utf-8")
        (folder / "events").mkdir()
        (folder / "events" / "a.tfevents.1").write_bytes(b"123")
        (folder / ".config.json.77.tmp").write_text("half", encoding="utf-8")
        save(folder, 3)
        save(folder, 6)
        with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
            file.write('{"step": 1}\n{"st')
            file.flush()
            until(lambda: Store(url).read("metrics.jsonl") == b'{"step": 1}\n')
            file.write('ep": 2}\n')
        until(lambda: "checkpoints/6.json" in names(url))
        shutil.rmtree(folder / "checkpoints" / "3")
    there = names(url)
    assert not any(name.startswith("checkpoints/3") or "tmp" in name for name in there)
    assert {"config.json", "events/a.tfevents.1", "checkpoints/6/params/d/1"} <= there
    leave(url)
    with working_in(url) as folder:
        assert (folder / "metrics.jsonl").read_text(encoding="utf-8").count("\n") == 2
        assert (folder / "checkpoints" / "6" / "params" / "d" / "1").read_bytes() == bytes(9)
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["6"]


def test_a_checkpoint_without_its_list_does_not_count_and_is_removed(url, caplog):
    with working_in(url) as folder:
        save(folder, 3)
        save(folder, 6)
        save(folder, 9)
    store = Store(url)
    store.remove(["checkpoints/6.json", "checkpoints/9/meta/metadata"])
    leave(url)
    with working_in(url) as folder:
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["3"]
    assert "checkpoints/9.json: lists files that are not there; step 9 is left out" in caplog.text
    assert {name.split("/")[1] for name in names(url)} == {"3", "3.json"}


def test_a_checkpoint_that_is_saved_again_is_replaced(url):
    with working_in(url) as folder:
        save(folder, 3)
    Store(url).write("evaluation.html", b"a page of another command")
    with working_in(url) as folder:  # the same host's copy
        save(folder, 3, size=20)
    assert "evaluation.html" in names(url)
    listed = json.loads(Store(url).read("checkpoints/3.json"))["files"]
    assert set(listed.values()) == {20}


def test_the_host_that_wrote_last_keeps_what_it_could_not_copy(url, monkeypatch, caplog):
    def refuse(self, files):
        if files:
            raise StoreError(f"{self.url}: cannot be written: the store answers with an error.")

    with working_in(url) as folder:
        save(folder, 3)
    send = Store.send
    with pytest.raises(UserError, match="the same command copies them"), working_in(url) as folder:
        monkeypatch.setattr(Store, "send", refuse)
        save(folder, 6)
        until(lambda: "Training continues" in caplog.text)
    monkeypatch.setattr(Store, "send", send)
    with working_in(url) as folder:
        assert (folder / "checkpoints" / "6").is_dir()
    assert "checkpoints/6.json" in names(url)
    assert caplog.text.count("Training continues") == 1


def test_a_disk_without_hard_links_or_room_is_named_and_not_the_store(url, monkeypatch, caplog):
    def full(*args, **keys):
        raise OSError(errno.ENOSPC, "No space left on device", args[0])

    with pytest.raises(UserError) as error, working_in(url) as folder:
        monkeypatch.setattr(mirror.os, "link", full)
        save(folder, 3)
        until(lambda: "Training continues" in caplog.text)
    place = f"this host's copy of {url} below "
    assert str(error.value).startswith(f"cannot write {place}")
    assert "(VITSWIN_CACHE): No space left on device; the files are on this" in str(error.value)
    assert caplog.messages[0].startswith(f"cannot write {place}")


def test_an_error_of_the_run_is_the_one_that_is_raised(url, monkeypatch, caplog):
    def refuse(self, name, content):
        raise StoreError(f"{self.url}: cannot be written: permission is denied.")

    with pytest.raises(UserError, match="loss is nan"), working_in(url) as folder:
        monkeypatch.setattr(Store, "write", refuse)
        save(folder, 3)
        raise UserError(f"{folder}: loss is nan")
    assert "permission is denied" in caplog.text


def test_a_run_that_cannot_begin_holds_nothing(url, monkeypatch):
    def refuse(self, files):
        raise StoreError(f"{self.url}: cannot be read: the store answers with an error.")

    with working_in(url) as folder:
        save(folder, 3)
    leave(url)
    with monkeypatch.context() as broken:
        broken.setattr(Store, "fetch", refuse)
        with pytest.raises(StoreError, match="the store answers"), working_in(url):
            pass
    assert json.loads(Store(url).read(LEASE))["trains"] is False


def test_messages_name_the_workdir_and_not_its_copy(url):
    with pytest.raises(UserError) as error, working_in(url) as folder:
        raise UserError(f"{folder}/config.json: is damaged.")
    assert str(error.value) == f"{url}/config.json: is damaged."


def test_a_second_run_is_refused_while_the_first_one_beats(url, monkeypatch, tmp_path):
    with working_in(url):
        with pytest.raises(UserError, match=r"/x is in use by process \d+ on "), working_in(url):
            pass
        monkeypatch.setenv("VITSWIN_CACHE", str(tmp_path / "another host"))
        with pytest.raises(UserError, match=r"/x is in use by process \d+ on "), working_in(url):
            pass


def test_a_killed_run_is_taken_over_from_another_host(url, caplog):
    caplog.set_level("INFO", "vitswin_jax")
    with working_in(url) as folder:
        save(folder, 3)
        held = Store(url).read(LEASE)
    Store(url).write(LEASE, held)  # as a killed process leaves it
    leave(url)
    with working_in(url) as folder:
        assert (folder / "checkpoints" / "3").is_dir()
    assert "waits up to" in caplog.text
    assert json.loads(Store(url).read(LEASE))["trains"] is False


def test_a_run_that_was_taken_over_ends_and_writes_nothing(url):
    with pytest.raises(UserError, match="has taken it over"), working_in(url) as folder:
        state = json.loads(Store(url).read(LEASE))
        Store(url).write(LEASE, json.dumps(state | {"copy": "another"}).encode())
        until((folder / "stop").exists)
        save(folder, 3)
    assert not any("checkpoints" in name for name in names(url))


def test_a_run_is_stopped_by_an_object(url):
    asked = threading.Thread(target=ask_to_stop, args=[url])
    with working_in(url) as folder:
        asked.start()
        until((folder / "stop").exists)
        asked.join()
    assert "stop" not in names(url)
    with pytest.raises(UserError, match="no run trains there now"):
        ask_to_stop(url)
    with pytest.raises(UserError, match=r"/none: is no workdir of a run"):
        ask_to_stop(f"{url}/none")


def test_a_workdir_on_a_disk_is_as_it_is(tmp_path):
    with working_in(tmp_path / "x") as folder:
        assert folder == tmp_path / "x"
