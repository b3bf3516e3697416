"""Object stores, by fsspec's in-memory one and by file://: the records that the disk has."""

from __future__ import annotations

import io
import tarfile

import fsspec
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess, TrainTransform
from vitswin_jax.data.pipeline import make_eval_batches, make_train_iterator
from vitswin_jax.data.sources.files import is_inside
from vitswin_jax.data.sources.open import open_source


@pytest.fixture
def stored(tmp_path, write_folder):
    """A folder, a table and ImageNet's flat layout, on disk and in a store."""
    colours = write_folder(tmp_path / "data" / "folder" / "train", {"a": 6, "b": 5})
    write_folder(tmp_path / "data" / "folder" / ".hidden", {"a": 1})
    flat = tmp_path / "data" / "folder" / "val"
    flat.mkdir()
    for number, name in list(enumerate(colours))[::3]:
        (tmp_path / "data" / "folder" / "train" / name).rename(flat / f"{number}.png")
    (flat / "val.txt").write_text("a\na\nb\nb")  # 0, 3, 6, 9
    rows = [f"folder/train/{name},{name[0]}" for n, name in enumerate(colours) if n % 3]
    (tmp_path / "data" / "labels.csv").write_text("\n".join(["path,label", *rows]))
    store = fsspec.filesystem("memory")
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            store.pipe(f"/bucket/{path.relative_to(tmp_path / 'data')}", path.read_bytes())
    yield tmp_path / "data"
    store.rm("/bucket", recursive=True)


def records(dataset, split):
    source = open_source(dataset, split=split)
    return source.class_names, {source.key(i): source[i] for i in range(len(source))}


@pytest.mark.parametrize("scheme", ["memory", "file"])
@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("folder", "train"),  # and not the hidden folder beside it
        ("folder", "train[:50%]"),
        ("folder", "val"),
        ("folder/train", "test"),
        ("labels.csv", "train"),
        ("{labels,labels}.csv", "all"),
        ("lab*.csv", "all"),
    ],
)
def test_a_store_has_what_the_disk_has(stored, scheme, name, split):
    root = "memory://bucket" if scheme == "memory" else f"file://{stored}"
    here, there = records(f"{stored}/{name}", split), records(f"{root}/{name}", split)
    assert here == there
    assert len(here[1]) >= 1


def test_shards_in_a_store(stored, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = (stored / "folder" / "val" / "0.png").read_bytes()
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for name, content in (("0.png", data), ("0.cls", b"a")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/shards/train-0.tar", (tmp_path / "train-0.tar").read_bytes())
    for dataset in ("shards", "shards/train-{0..0}.tar", "shards/*.tar"):
        source = open_source(f"memory://bucket/{dataset}", split="train")
        assert [source[i] for i in range(len(source))] == [{"image": data, "label": 0}]


def test_workers_read_from_a_store(stored):
    dataset = f"file://{stored}/folder/train"
    source = open_source(dataset, split="all")
    here, there = (
        next(iter(make_eval_batches(s, batch_size=7, preprocess=Preprocess((4, 5)), workers=w)))
        for s, w in ((open_source(f"{stored}/folder/train", split="all"), 0), (source, 1))
    )
    assert (here["image"] == there["image"]).all()


def test_a_table_may_name_a_stores_files(stored):
    text = "path,label\nmemory://bucket/folder/val/0.png,a\n" + f"{stored}/folder/val/3.png,b"
    (stored / "mixed.csv").write_text(text)
    dataset = str(stored / "mixed.csv")
    with pytest.raises(UserError, match=r"mixed\.csv: line 2 names memory://bucket/.*outside"):
        open_source(dataset, split="all")
    source = open_source(dataset, split="all", outside_files=True)
    assert [source[i]["image"] for i in range(2)] == [
        (stored / "folder" / "val" / f"{i}.png").read_bytes() for i in (0, 3)
    ]


def test_what_is_gone_is_named(stored):
    source = open_source("memory://bucket/folder", split="train")
    fsspec.filesystem("memory").rm(source.describe(1))
    with pytest.raises(UserError, match=r"^memory://.*/train/a/002\.png: cannot be read: No such"):
        source[1]
    transform = TrainTransform((4, 5), crop="none", flip=False)
    iterator = make_train_iterator(
        source, batch_size=7, transform=transform, seed=0, on_unreadable="skip"
    )
    assert next(iterator)["mask"].sum() == 6
    iterator.close()


def error(dataset):
    with pytest.raises(UserError) as caught:
        open_source(dataset, split="train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_there_is_one_line(stored):
    del stored
    assert error("memory://no/where").startswith("memory://no/where: no such folder;")
    assert error("memory://no/x.csv").endswith("no such file(s): memory://no/x.csv.")
    assert error("nowhere://x/y").startswith("nowhere://: cannot be opened: ")


def test_a_store_whose_package_is_missing_says_which():
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        assert "gcsfs" in error("gs://bucket/folder")
    else:
        pytest.skip("gcsfs is installed")


@pytest.mark.parametrize(
    "root, path, inside",
    [
        ("ROOT", "a.png", True),
        ("ROOT", "b/../a.png", True),
        ("ROOT", "ROOT/a.png", True),
        ("ROOT", "../x.png", False),
        ("ROOT", "b/../../x.png", False),
        ("ROOT", "ROOT/../x.png", False),
        ("ROOT", "ROOT-2/x.png", False),
        ("ROOT", "/etc/passwd", False),
        ("ROOT", "link/x.png", True),  # someone has put the link there
        ("ROOT", "link/../x.png", False),  # leads beside what the link leads to
        ("ROOT", "a\0.png", True),  # which is not there
        ("ROOT", "../a\0.png", False),
        ("ROOT", "memory://bucket/a.png", False),
        ("ROOT", "file://ROOT/a.png", False),
        ("gs://bucket/f", "a.png", True),
        ("gs://bucket/f", "gs://bucket/f/a.png", True),
        ("gs://bucket/f", "gs://bucket/f/../a.png", False),
        ("gs://bucket/f", "../a.png", False),
        ("gs://bucket/f", "gs://other/f/a.png", False),
        ("gs://bucket/f", "s3://bucket/f/a.png", False),
        ("gs://bucket/f", "gs://bucket/f/a::file:///etc/passwd", False),
        ("gs://bucket/f", "/etc/passwd", False),
    ],
)
def test_what_is_inside_a_folder(tmp_path, root, path, inside):
    (tmp_path / "root" / "b").mkdir(parents=True)
    (tmp_path / "elsewhere" / "inner").mkdir(parents=True)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere" / "inner")
    root, path = (text.replace("ROOT", str(tmp_path / "root")) for text in (root, path))
    assert is_inside(root, path) is inside
