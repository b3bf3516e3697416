"""Tar shards: what is read is what was packed, at random, and every way they can be broken."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.sources import shards
from vitswin_jax.data.sources.open import open_source


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitswin_jax" / "shards"


def png(value):
    data = io.BytesIO()
    Image.new("L", (3, 3), value).save(data, "PNG")
    return data.getvalue()


def pack(path, members):
    """Writes an archive of names with their bytes, or of ready headers with none."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            if isinstance(name, str):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            else:
                archive.addfile(name)
    return str(path)


def examples(numbers, label=lambda i: str(i % 2)):
    for i in numbers:
        yield f"set/{i:04d}.png", png(i)
        yield f"set/{i:04d}.json", b'{"width": 3}'
        yield f"set/{i:04d}.cls", f"{label(i)}\n".encode()


@pytest.fixture
def folder(tmp_path):
    """Three train shards, one empty of the second class, and one validation shard."""
    root = tmp_path / "shards"
    root.mkdir()
    for shard, numbers in enumerate((range(10), range(10, 13), [14, 16])):
        pack(root / f"birds-train-{shard:06d}.tar", examples(numbers))
    pack(root / "birds-val-000000.tar", examples(range(20, 24)))
    return root


TRAIN = [*range(13), 14, 16]


def pixels(source):
    return [Image.open(io.BytesIO(source[i]["image"])).getpixel((0, 0)) for i in range(len(source))]


def test_examples_of_all_shards_in_order(folder):
    dataset = f"{folder}/birds-train-{{000000..000002}}.tar"
    source = open_source(dataset, split="train")
    assert pixels(source) == TRAIN
    assert [source[i]["label"] for i in range(15)] == [i % 2 for i in TRAIN]
    assert source.class_names == ("0", "1")
    assert source.describe(11) == f"{folder}/birds-train-000001.tar/set/0011"
    copy = pickle.loads(pickle.dumps(source))
    assert pixels(copy) == TRAIN
    with ThreadPoolExecutor(8) as pool:
        order = [i * 7 % 15 for i in range(300)]
        assert list(pool.map(source.__getitem__, order)) == [source[i] for i in order]


def test_a_folder_of_shards_has_the_splits_of_their_names(folder):
    assert pixels(open_source(str(folder), split="train")) == TRAIN
    assert pixels(open_source(str(folder), split="test")) == [20, 21, 22, 23]
    both = f"{folder}/birds-{{train,val}}-*.tar"
    assert pixels(open_source(both, split="val")) == [20, 21, 22, 23]


def test_classes_are_named_by_a_file_beside_them(folder):
    (folder / "classes.txt").write_text("owl\nwren\nrook\n")
    source = open_source(str(folder), split="val")
    assert source.class_names == ("owl", "wren", "rook")
    pack(folder / "birds-train-000003.tar", examples([30], label=lambda i: "rook"))
    assert open_source(str(folder), split="train")[15]["label"] == 2
    pack(folder / "birds-train-000003.tar", examples([30, 31], label=lambda i: i))
    with pytest.raises(UserError, match=r"shards: has no class 30, 31 among its 3\."):
        open_source(str(folder), split="train")


def test_several_classes_of_an_image(tmp_path):
    pack(tmp_path / "x.tar", examples([0, 1], label=lambda i: "red;big" if i else "red"))
    source = open_source(str(tmp_path / "x.tar"), split="all")
    assert source.multi_label and source.class_names == ("big", "red")
    assert [source[i]["label"] for i in range(2)] == [(1,), (0, 1)]


def test_the_index_is_kept_until_the_archive_changes(folder, cache, monkeypatch):
    first = pixels(open_source(str(folder), split="train"))
    assert len(list(cache.iterdir())) == 4
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_index", None)  # would be called
        assert pixels(open_source(str(folder), split="train")) == first
    for path in cache.iterdir():
        path.write_text("[[1")
    assert pixels(open_source(str(folder), split="train")) == first
    pack(folder / "birds-train-000002.tar", examples([40, 41, 42]))
    assert pixels(open_source(str(folder), split="train")) == [*range(13), 40, 41, 42]


def test_a_cache_that_cannot_be_written_costs_only_time(folder, cache, caplog):
    cache.parent.mkdir(parents=True)
    cache.touch()
    assert pixels(open_source(str(folder), split="val")) == [20, 21, 22, 23]
    assert "is not kept" in caplog.text


def error(dataset, split="train"):
    with pytest.raises(UserError) as caught:
        open_source(str(dataset), split=split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def link(name, kind, target):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([("set/0099.png", b"x")], "set/0099 has no .cls;"),
        ([("0099.cls", b"1"), ("0098.jpg", b"x")], "0099 has no image, 0098 has no .cls;"),
        ([("set/0001.jpg", b"x")], None),
        ([("set/0001.cls", b"1")], "set/0001 has two labels;"),
        ([("set/0001.png", b"x")], "set/0001 has two images;"),
        ([("9.png", b"x"), ("9.cls", b" \n")], "9.cls names no class;"),
        ([link("9.png", tarfile.SYMTYPE, "/etc/passwd"), ("9.cls", b"1")], "9.png is a link or"),
        ([link("9.cls", tarfile.LNKTYPE, "set/0001.cls")], "9.cls is a link or no plain file"),
        ([("9.png", b"x"), ("9.cls", b"\xff")], "is damaged, or no tar archive"),
    ],
)
def test_members_that_are_wrong_are_named(tmp_path, more, message):
    path = pack(tmp_path / "x.tar", [*examples(range(4)), *more])
    told = error(path)
    assert told.startswith(f"{path}: ")
    assert (message or "set/0001 has two images;") in told


def test_names_that_lead_elsewhere_lead_nowhere(tmp_path):
    """A member is read where it lies in the archive; its name is only a key."""
    path = pack(tmp_path / "x.tar", [("../../etc/a.png", png(5)), ("../../etc/a.cls", b"k")])
    source = open_source(path, split="all")
    assert pixels(source) == [5]
    assert [p.name for p in tmp_path.iterdir()] == ["cache", "x.tar"]


@pytest.mark.parametrize("kept", [100, 700, 1800, 5000])
def test_an_archive_that_is_cut_off(tmp_path, kept):
    path = tmp_path / "x.tar"
    pack(path, examples(range(4)))
    path.write_bytes(path.read_bytes()[:kept])
    assert error(path).startswith(f"{path}: ")


def test_what_is_no_archive_or_empty_or_not_there(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"<html>" * 300)
    assert error(tmp_path / "x.tar").startswith(f"{tmp_path}/x.tar: is damaged, or no tar archive")
    pack(tmp_path / "y.tar", [])
    assert "y.tar: holds no KEY.jpg with its KEY.cls;" in error(tmp_path / "y.tar")
    missing = f"{tmp_path}/z-1.tar, {tmp_path}/z-2.tar"
    assert error(f"{tmp_path}/z-{{1..2}}.tar").endswith(f"no such file(s): {missing}.")


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz"])
def test_compressed_archives_are_refused(folder, suffix):
    path = folder / f"x{suffix}"
    path.write_bytes(gzip.compress((folder / "birds-val-000000.tar").read_bytes()))
    assert "a compressed archive cannot be read in any order" in error(path)
    disguised = folder / "birds-val-000001.tar"
    disguised.write_bytes(path.read_bytes())
    assert "birds-val-000001.tar: is damaged, or no tar archive" in error(folder)


def test_a_class_of_the_validation_split_alone(folder):
    pack(folder / "birds-val-000001.tar", examples([50, 51], label=lambda i: i))
    assert error(folder).endswith(
        "has no example of classes that other splits have: 50, 51 in val."
    )


def test_shards_of_no_split_beside_those_of_one(folder):
    pack(folder / "extra-0.tar", examples([50]))
    assert "extra-0.tar do not show a split" in error(folder)


def test_arrays_are_images_where_there_are_no_pictures(tmp_path):
    array = io.BytesIO()
    np.save(array, np.zeros((2, 2, 5), np.uint8))
    members = [(f"{i}.npy", array.getvalue()) for i in range(3)]
    members += [(f"{i}.cls", str(i % 2).encode()) for i in range(3)]
    source = open_source(pack(tmp_path / "a.tar", members), split="all")
    assert [source[i]["image"] for i in range(3)] == [array.getvalue()] * 3
    pictures = [(f"{i}.png", png(i)) for i in range(3)]
    source = open_source(pack(tmp_path / "b.tar", members + pictures), split="all")
    assert pixels(source) == [0, 1, 2]
