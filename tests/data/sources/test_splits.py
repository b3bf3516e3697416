"""Slices and fractions of every kind of source: who belongs where, and what is no split."""

from __future__ import annotations

import io
import itertools
import shutil
import tarfile

import numpy as np
import pytest

from vitswin_jax.core.types import Source, UserError
from vitswin_jax.data.sources.open import open_source

COUNT = 101


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, write_folder, digits_root):
    """The same 101 images as a folder, a table and shards, and a TFDS dataset, all undivided."""
    root = tmp_path_factory.mktemp("kinds")
    files = write_folder(root / "folder", {"a": 60, "b": 41})
    (root / "images").symlink_to(root / "folder")
    lines = [f"images/{path},{path.partition('/')[0]}" for path in files]
    (root / "table.csv").write_text("\n".join(["path,label", *lines]))
    with tarfile.open(root / "flowers-0.tar", "w") as archive:
        for path in files:
            for name, data in (
                (path, (root / "folder" / path).read_bytes()),
                (path.replace(".png", ".cls"), path[:1].encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return {
        "folder": str(root / "folder"),
        "table": str(root / "table.csv"),
        "shards": str(root / "flowers-{0..0}.tar"),
    }


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def keys(dataset, split, **options):
    source = open_source(dataset, split=split, **options)
    assert isinstance(source, Source)
    assert source.name == f"{dataset}:{split}"
    assert len({source.describe(i) for i in range(len(source))}) == len(source)
    return [source.key(i) for i in range(len(source))]


KINDS = pytest.mark.parametrize("kind", ["folder", "table", "shards"])


@KINDS
def test_slices_that_meet_are_a_partition(kinds, kind):
    dataset = kinds[kind]
    whole = keys(dataset, "all")
    assert len(whole) == COUNT
    for cuts in (["", "90%", ""], ["", "10%", "20%", "99.5%", ""], ["", "17", "-5", ""]):
        parts = [keys(dataset, f"all[{a}:{b}]") for a, b in itertools.pairwise(cuts)]
        assert sorted(itertools.chain(*parts)) == sorted(whole)
    assert [len(keys(dataset, f"all[{s}]")) for s in ("10%:20%", ":90%", "-10%:", ":7")] == [
        10,
        91,
        10,
        7,
    ]


@KINDS
def test_a_slice_keeps_its_records_and_their_order(kinds, kind):
    whole, part = (open_source(kinds[kind], split=s) for s in ("all", "all[:30%]"))
    place = {whole.key(i): i for i in range(len(whole))}
    places = [place[part.key(i)] for i in range(len(part))]
    assert places == sorted(places)
    for i, index in enumerate(places):
        assert part[np.int64(i)] == whole[index]
        assert part.describe(i) == whole.describe(index)
        assert part.label(i) == part[i]["label"]


@KINDS
def test_a_slice_has_all_classes_and_is_that_of_its_seed(kinds, kind):
    """41 of 101 images are of the second class, which the folder has last."""
    source = open_source(kinds[kind], split="all[:40]")
    labels = [source.label(i) for i in range(40)]
    assert 8 <= sum(labels) <= 25
    first = keys(kinds[kind], "all[:40]", seed=3)
    assert keys(kinds[kind], "all[:40]", seed=3) == first
    assert keys(kinds[kind], "all[:40]", seed=4) != first


@KINDS
def test_what_is_held_out_can_be_cut_too(kinds, kind):
    train, test = keys(kinds[kind], "train"), keys(kinds[kind], "test")
    assert sorted(train + test) == sorted(keys(kinds[kind], "all"))
    halves = keys(kinds[kind], "train[:50%]"), keys(kinds[kind], "train[50%:]")
    assert sorted(itertools.chain(*halves)) == sorted(train)


def test_a_file_more_moves_at_most_one_across_a_slice_bound(kinds, tmp_path):
    shutil.copytree(kinds["folder"], tmp_path / "more")
    before = set(keys(str(tmp_path / "more"), "all[:50]"))
    shutil.copy(tmp_path / "more" / "a" / "000.png", tmp_path / "more" / "a" / "new.png")
    after = set(keys(str(tmp_path / "more"), "all[:50]"))
    assert len(before - after) <= 1


def test_slices_are_pinned(kinds):
    """A run that is taken up again, on any machine, must train on the same files."""
    assert keys(kinds["folder"], "all[:5%]") == [
        "a/030.png",
        "a/047.png",
        "a/054.png",
        "b/096.png",
        "b/097.png",
    ]


def test_parts_of_tfds_are_tfds_own(digits_root):
    whole, part = (
        open_source("digits", split=s, data_dir=digits_root) for s in ("test", "test[10:13]")
    )
    assert [part[i] for i in range(3)] == [whole[i] for i in range(10, 13)]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trian", "no split 'trian'; a dataset that is divided by holdout has train, test, val, "
         "validation (all the held-out part) and all."),
        ("trian[:5]", "no split 'trian'"),
        ("all[5]", "the split 'all[5]' is not written as NAME or NAME[FROM:TO]"),
        ("all[:5", "is not written as"),
        ("all[:5.5]", "is not written as"),
        ("all[:102]", "102 is more than the 101 records."),
        ("all[:101%]", "101% is more than the 101 records"),
        ("all[50:50]", ":all[50:50]: is empty; "),
        ("all[90%:10%]", "is empty"),
    ],
)  # fmt: skip
def test_what_is_no_split_is_one_line(kinds, split, message):
    with pytest.raises(UserError) as caught:
        open_source(kinds["folder"], split=split)
    assert str(caught.value).startswith(kinds["folder"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_part_without_a_class_is_logged(kinds, caplog):
    """A few images to try something out are allowed; a log line names the classes left out."""
    source = open_source(kinds["folder"], split="all[:1]")
    (absent,) = {"a", "b"} - {source.class_names[source.label(0)]}
    assert f"all[:1]: has no example of 1 class(es): {absent}" in caplog.text
