"""Object stores, by fsspec's in-memory one."""

import importlib.util
import time

import pytest
from object_server import serving

from vitswin_jax.core import store as store_module
from vitswin_jax.core.store import Store, StoreError, is_url
from vitswin_jax.core.types import UserError


@pytest.fixture
def store(tmp_path):
    return Store(f"memory://bucket{tmp_path}")


def test_objects_are_written_listed_read_and_removed(store, tmp_path):
    assert store.list() == {}
    store.write("a/b.json", b"{}")
    (tmp_path / "c").write_bytes(b"12345")
    store.send({"c d": tmp_path / "c", "a/e": tmp_path / "c"})
    assert {name: each.size for name, each in store.list().items()} == {
        "a/b.json": 2,
        "c d": 5,
        "a/e": 5,
    }
    store.fetch({"c d": tmp_path / "new" / "d"})
    assert (tmp_path / "new" / "d").read_bytes() == b"12345"
    assert store.read("a/b.json") == b"{}"
    assert store.read("a/none") is None
    store.remove(["c d", "a/e", "none"])
    assert set(store.list()) == {"a/b.json"}


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a//b"])
def test_an_object_whose_name_leaves_a_folder_is_refused(store, name):
    store.write("a/b", b"1")
    files = store._files.store  # the client's own calls resolve such names; S3 keeps them
    files[f"{store._root}/{name}"] = files[f"{store._root}/a/b"]
    with pytest.raises(UserError, match="is no name of a file"):
        store.list()
    del files[f"{store._root}/{name}"]


def test_a_changed_object_has_another_mark(store):
    store.write("a", b"1")
    before = store.list()["a"]
    store.write("a", b"2")
    assert store.list()["a"] != before


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("ftp://host/x", "ftp://host/x: ftp:// is no store that is known; use gs://, s3:// or a"),
        ("gs://", "gs://: must be gs://BUCKET/PATH."),
        ("s3:///x", "s3:///x: must be s3://BUCKET/PATH."),
        ("memory://b/x@5", "memory://b/x@5: must be memory://BUCKET/PATH."),
    ],
)
def test_an_address_that_is_none_is_one_line(url, line):
    with pytest.raises(UserError) as error:
        Store(url)
    assert str(error.value).startswith(line)


def test_a_missing_object_and_a_missing_file_are_one_line(store, tmp_path):
    with pytest.raises(StoreError, match=r"/none: cannot be read: "):
        store.fetch({"none": tmp_path / "x"})
    with pytest.raises(StoreError, match=r"/a: cannot be written: No such file or directory\.$"):
        store.send({"a": tmp_path / "none"})


def fails(client, name, error, times):
    """Has a call of a store's client raise, so many times; returns what it was called with."""
    called, real = [], getattr(client, name)

    def call(*args):
        called.append(args[0])
        if len(called) <= times:
            raise error
        return real(*args)

    client.__dict__[name] = call
    return called


@pytest.fixture
def quick(monkeypatch):
    """Has stores be patient for a moment only."""
    monkeypatch.setattr(store_module, "PATIENCE", 2.0)
    monkeypatch.setattr(time, "sleep", lambda seconds, real=time.sleep: real(seconds / 100))


def test_a_store_that_fails_for_a_while_is_asked_again(store, quick):
    client = store._files
    try:
        called = fails(client, "pipe_file", TimeoutError(), 2)
        store.write("a", b"1")
        assert len(called) == 3 and store.read("a") == b"1"
        called = fails(client, "pipe_file", PermissionError("Access Denied"), 1)
        with pytest.raises(StoreError, match=r"/a: cannot be written: permission is denied for"):
            store.write("a", b"2")
        assert len(called) == 1
        called = fails(client, "pipe_file", FileNotFoundError("b"), 1)
        with pytest.raises(StoreError, match=r"/a: cannot be written: there is no such bucket\.$"):
            store.write("a", b"2")
    finally:
        del client.__dict__["pipe_file"]


def test_of_many_objects_the_first_that_fails_ends_the_rest(store, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "PATIENCE", 0.0)
    (tmp_path / "a").write_bytes(b"1")
    called = []

    def refuse(*args):
        called.append(args)
        time.sleep(0.01)
        raise ConnectionResetError

    try:
        store._files.__dict__["put_file"] = refuse
        with pytest.raises(StoreError, match="the store does not answer"):
            store.send({str(i): tmp_path / "a" for i in range(1000)})
        assert len(called) < 1000
    finally:
        del store._files.__dict__["put_file"]


def test_a_full_disk_is_not_the_stores_fault(store, tmp_path):
    store.write("a", b"1")
    (tmp_path / "a").symlink_to("/dev/full")
    with pytest.raises(UserError) as error:
        store.fetch({"a": tmp_path / "a"})
    assert str(error.value) == f"cannot write {tmp_path / 'a'}: No space left on device."
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*/file/b: (Not a directory|File exists)"):
        store.fetch({"a": tmp_path / "file" / "b"})


@pytest.fixture(params=[("s3", "s3fs"), ("gs", "gcsfs")], ids=["s3", "gs"])
def served(request, monkeypatch, quick):
    """A store of each kind, and the shelf of the server that answers its client."""
    scheme, package = request.param
    client = pytest.importorskip(package)
    with serving() as shelf:
        names = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        names |= dict.fromkeys(("AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"), shelf.address)
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(store_module, "_ANSWER", {"s3": 0.5, "gs": 0.5})
        yield Store(f"{scheme}://bucket/runs/x"), shelf
        for each in ("S3FileSystem", "GCSFileSystem"):
            if hasattr(client, each):
                getattr(client, each).clear_instance_cache()


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ((403, "AccessDenied"), "permission is denied for these credentials"),
        ((401, "Unauthorized"), "no credentials are found, or they are not accepted"),
        ((400, "BadRequest"), r"the store refuses the request \(400( BadRequest)?\)"),
        ((503, "SlowDown"), r"the store answers with an error \(503( SlowDown)?\)"),
        ((500, "InternalError"), r"the store answers with an error \(500( InternalError)?\)"),
        ("silent", "the store does not answer"),
    ],
    ids=str,
)
def test_a_server_that_answers_with_errors_is_one_line(served, fault, reason, capfd):
    store, shelf = served
    shelf.fault = lambda method, path: fault
    calls = [store.list, lambda: store.read("a"), lambda: store.write("a", b"1")]
    if store.url.startswith("gs://") and (fault == "silent" or fault[0] >= 500):
        del calls[1:]  # each takes Google's client half a minute
    for call in calls:
        with pytest.raises(StoreError, match=rf"x(/a)?: cannot be (read|written): {reason}\.$"):
            call()
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.long
def test_a_server_of_s3_that_fails_for_a_while_is_asked_again(served, monkeypatch):
    store, shelf = served
    monkeypatch.setattr(store_module, "PATIENCE", 60.0)
    if not store.url.startswith("s3://"):
        pytest.skip("the server does not speak Google's protocol")
    shelf.fault = lambda method, path: (503, "SlowDown") if len(shelf.asked) < 3 else None
    store.write("a/b", b"1")
    assert len(shelf.asked) == 3 and list(store.list()) == ["a/b"]
    with pytest.raises(StoreError, match="none/x: cannot be read: there is no such bucket"):
        Store("s3://none/x").list()


@pytest.mark.parametrize(("url", "package"), [("gs://b/x", "gcsfs"), ("s3://b/x", "s3fs")])
def test_a_store_whose_package_is_not_installed_names_it(url, package):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(UserError, match=rf"needs {package}: pip install 'vitswin_jax\[g?c?s3?\]'"):
        Store(url)


def test_only_known_schemes_are_addresses():
    assert is_url("memory://b/x")
    assert not is_url("hf://user/model")
    assert not is_url("gs")
