"""TFDS datasets on disk, read without TensorFlow, and every way in which they can be missing."""

from __future__ import annotations

import io
import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.sources.files import FileSource
from vitswin_jax.data.sources.open import check_same_classes, open_source


class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset of any features, written as TFDS writes them."""

    VERSION = tfds.core.Version("2.1.0")

    def __init__(self, name, features, examples, data_dir, supervised_keys=None):
        self.name = name
        self._contents = features, examples, supervised_keys
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self):
        features, _, keys = self._contents
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys
        )

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self._contents[1])


def png(value):
    data = io.BytesIO()
    Image.new("L", (3, 3), value).save(data, "PNG")
    data.seek(0)
    return data


@pytest.fixture
def write(tmp_path, capsys):
    def write(features, examples, supervised_keys=None, name="mine"):
        builder = Written(name, features, examples, str(tmp_path), supervised_keys)
        builder.download_and_prepare(download_dir=tmp_path / "downloads")
        capsys.readouterr()
        return builder

    return write


IMAGE, LABEL = tfds.features.Image, tfds.features.ClassLabel


def test_keys_are_found_by_their_kind(write, tmp_path):
    features = {"id": np.int64, "picture": IMAGE(), "species": LABEL(names=["owl", "cat"])}
    write(features, [{"id": i, "picture": png(i), "species": i % 2} for i in range(6)])
    source = open_source("mine", split="train", data_dir=tmp_path)
    assert source.class_names == ("owl", "cat")
    assert sorted(source[0]) == ["image", "label"]
    shown = {Image.open(io.BytesIO(source[i]["image"])).getpixel((0, 0)) for i in range(6)}
    assert shown == set(range(6))


def test_supervised_keys_choose_among_several(write, tmp_path):
    features = {"image": IMAGE(), "mask": IMAGE(), "label": LABEL(names=["a", "b"])}
    features["coarse"] = LABEL(num_classes=5)
    write(features, [{"image": png(1), "mask": png(2), "label": 1, "coarse": 4}],
          supervised_keys=("image", "label"))  # fmt: skip
    source = open_source("mine", split="train", data_dir=tmp_path)
    assert source.class_names == ("a", "b")
    assert source[0] == {"image": png(1).getvalue(), "label": 1}


@pytest.mark.parametrize(
    ("features", "listed"),
    [
        ({"image": IMAGE()}, "the images image and the class labels (none)"),
        ({"image": IMAGE(), "mask": IMAGE(), "label": LABEL(num_classes=2)},
         "the images image, mask and the class labels label"),
    ],
)  # fmt: skip
def test_no_single_pair_of_image_and_label(write, tmp_path, features, listed):
    example = {key: png(0) if isinstance(kind, IMAGE) else 0 for key, kind in features.items()}
    write(features, [example])
    with pytest.raises(UserError, match=rf"^mine: needs one image.*, and has {re.escape(listed)}"):
        open_source("mine", split="train", data_dir=tmp_path)


def test_hidden_labels_are_refused(write, tmp_path):
    """TFDS stores -1 where the labels of a test split are secret."""
    write({"image": IMAGE(), "label": LABEL(num_classes=2)}, [{"image": png(0), "label": -1}])
    source = open_source("mine", split="train", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"^mine:train\[0\]: has the label -1, outside \[0, 2\)"):
        source[0]


def test_directory_name_and_version_all_open_the_same(write, tmp_path):
    builder = write({"image": IMAGE(), "label": LABEL(num_classes=2)}, [
        {"image": png(i), "label": i % 2} for i in range(4)])  # fmt: skip
    by_name = open_source("mine", split="train", data_dir=tmp_path)
    for dataset in ("mine:2.1.0", str(builder.data_dir)):
        source = open_source(dataset, split="train", data_dir=tmp_path)
        assert [source[i] for i in range(4)] == [by_name[i] for i in range(4)]


def test_pickled_source_reads_the_same(digits):
    copy = pickle.loads(pickle.dumps(digits["test"]))
    assert copy.name == "digits:test"
    assert len(pickle.dumps(copy)) < 1000  # it opens its files again instead
    assert copy[np.int64(7)] == digits["test"][7]


def test_threads_read_what_one_reads(digits):
    source, order = digits["test"], np.random.default_rng(0).integers(0, 450, 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, order)) == [source[i] for i in order]


def error(dataset, split="train", data_dir=None):
    with pytest.raises(UserError) as caught:
        open_source(dataset, split=split, data_dir=data_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_split_lists_the_splits(digits_root):
    for split in ("trian", "train[:200%]", "train["):
        assert error("digits", split, digits_root) == (
            f"digits: no split {split!r}; there are train, test, and parts of them such as "
            "'train[:99%]'."
        )


def test_unknown_name_suggests_the_nearest(tmp_path):
    assert error("cifr10", data_dir=tmp_path) == (
        f"cifr10: neither a folder nor a dataset of TFDS, in its catalogue or prepared in "
        f"{tmp_path}; did you mean 'cifar10'?"
    )
    assert "did you mean 'digits'?" in error("digit", data_dir=tmp_path)


def test_dataset_that_is_not_prepared_tells_the_command(tmp_path):
    assert error("cifar10", data_dir=tmp_path) == (
        f"cifar10: not prepared in {tmp_path}/cifar10/3.0.2; run `python -m "
        f"vitswin_jax.data.prepare cifar10 --data_dir {tmp_path}` first."
    )


@pytest.mark.parametrize("name", ["cifar10/no_such_config", "cifar10:9.9.9", "two words", "a:b:c"])
def test_what_tfds_refuses_is_one_line(name, tmp_path):
    assert error(name, data_dir=tmp_path).startswith(f"{name}: ")


def test_tfrecord_is_refused_with_the_way_out(write, tmp_path):
    builder = write({"image": IMAGE(), "label": LABEL(num_classes=1)}, [{"image": png(0),
                                                                     "label": 0}])  # fmt: skip
    # As TFDS writes it by default: other files, and their format in the description.
    description = builder.data_path / "dataset_info.json"
    info = json.loads(description.read_text())
    info["fileFormat"] = "tfrecord"
    description.write_text(json.dumps(info))
    for path in builder.data_path.glob("*array_record*"):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    message = error("mine", data_dir=tmp_path)
    assert message.startswith(f"mine: {builder.data_dir} holds tfrecord files")
    command = f"`python -m vitswin_jax.data.prepare {builder.data_dir} --data_dir ANOTHER_DIR`"
    assert f"{command} copies them into ArrayRecord" in message


def test_damaged_records_are_one_line(write, tmp_path):
    builder = write({"image": IMAGE(), "label": LABEL(num_classes=1)},
                    [{"image": png(i), "label": 0} for i in range(200)])  # fmt: skip
    (path,) = builder.data_path.glob("*array_record*")
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        source = open_source("mine", split="train", data_dir=tmp_path)
        [source[i] for i in range(200)]
    assert str(caught.value).startswith("mine:train")
    assert "\n" not in str(caught.value)


def with_classes(name, *class_names):
    return FileSource(Path("x"), [], class_names, name)


def test_same_classes_pass():
    check_same_classes(with_classes("x:train", "a", "b"), with_classes("x:test", "a", "b"))


def test_other_classes_are_all_listed():
    with pytest.raises(UserError) as caught:
        check_same_classes(
            with_classes("x:train", "a", "b", "c"), with_classes("x:test", "a", "d", "e")
        )
    assert str(caught.value) == (
        "x:train and x:test must have the same classes: x:test alone has d, e; "
        "x:train alone has b, c."
    )


def test_other_order_of_classes():
    with pytest.raises(UserError, match="the same classes in another order"):
        check_same_classes(with_classes("x:train", "a", "b"), with_classes("x:test", "b", "a"))
