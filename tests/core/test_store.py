"""Object stores, by fsspec's in-memory one."""

import importlib.util

import pytest

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
