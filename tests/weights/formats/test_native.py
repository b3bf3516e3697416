"""Native files: bit-exact, whole or absent, and one clear line for whatever else is found."""

import json
import math
import stat
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats import native as files
from vitswin_jax.weights.formats.read import read_tensors


def read_native(path):
    """The arrays of a native file and its metadata."""
    contents = read_tensors(path)
    return {name: tensor.read() for name, tensor in contents.tensors.items()}, contents.metadata


def special_values():
    bits = np.array([0, 0x80000000, 1, 0x7F800000, 0xFF800000, 0x7FC00001, 0x3F800001], np.uint32)
    return {
        "a/kernel": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32),
        "a/bias": bits.view(np.float32),
        "scalar": np.float32(3).reshape(()),
        "empty": np.zeros((0, 4), np.float32),
    }


def test_round_trip_is_bit_exact(tmp_path):
    tensors = special_values()
    metadata = {"class_names": ["ä", "<b>"], "metrics": {"test/accuracy": 0.1}, "pretrain": None}
    files.write_native(tmp_path / "a.safetensors", tensors, metadata=metadata)
    got, got_metadata = read_native(tmp_path / "a.safetensors")
    assert got_metadata == metadata
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert got[name].dtype == np.float32
        assert got[name].shape == tensor.shape
        assert got[name].tobytes() == tensor.tobytes()


def test_strides_are_honoured(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    views = {"t": array.transpose(2, 0, 1), "f": np.asfortranarray(array[0]), "r": array[:, ::-2]}
    files.write_native(tmp_path / "a.safetensors", views, metadata={})
    got, _ = read_native(tmp_path / "a.safetensors")
    for name, view in views.items():
        np.testing.assert_array_equal(got[name], view)


def test_any_safetensors_reader_opens_it(tmp_path):
    tensors = special_values()
    files.write_native(tmp_path / "a.safetensors", tensors, metadata={})
    assert safetensors.numpy.load_file(tmp_path / "a.safetensors").keys() == tensors.keys()


def test_same_content_gives_the_same_bytes(tmp_path):
    """In fresh processes too: names and metadata are in no hash's order."""
    script = (
        "import sys, numpy as np; from vitswin_jax.weights.formats import native as files;"
        "t = {n: np.ones(2, np.float32) for n in 'abcdefgh'};"
        "files.write_native(sys.argv[1], t, metadata=dict.fromkeys('abcdefgh'))"
    )
    for name in "ab":
        subprocess.run([sys.executable, "-c", script, tmp_path / name], check=True, timeout=60)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_dtypes_are_all_named(tmp_path):
    tensors = {"good": np.zeros(1, np.float32), "b": np.zeros(1), "a": np.zeros(1, np.int32)}
    with pytest.raises(ValueError, match=r"a \(int32\), b \(float64\)"):
        files.write_native(tmp_path / "a.safetensors", tensors, metadata={})
    assert list(tmp_path.iterdir()) == []


def test_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    files.write_native(tmp_path / "a", {"a": np.ones(3, np.float32)}, metadata={})
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


@pytest.mark.parametrize("place", ["missing/a.safetensors", "file/a.safetensors"])
def test_unwritable_place_is_named(tmp_path, place):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=f"cannot write .*{place}"):
        files.write_native(tmp_path / place, {"a": np.ones(3, np.float32)}, metadata={})


def written(tmp_path):
    files.write_native(tmp_path / "a", special_values(), metadata={"name": "x"})
    return (tmp_path / "a").read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: data[:5], "cannot be read as a safetensors"),
        (lambda data: data[:-1], "cannot be read as a safetensors"),
        (lambda data: data[: len(data) // 2], "cannot be read as a safetensors"),
        (lambda data: data + b"more", "cannot be read as a safetensors"),
        (lambda data: b"\xff" * 8 + data[8:], "cannot be read as a safetensors"),
        (lambda data: data[:8] + b"?" + data[9:], "cannot be read as a safetensors"),
        (lambda data: b"\x89PNG\r\n\x1a\n" + data, "is an image"),
    ],
)
def test_damaged_file_is_one_line(tmp_path, damage, message):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(damage(written(tmp_path)))
    with pytest.raises(UserError, match=rf"bad\.safetensors: {message}"):
        read_native(path)


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_no_flipped_bit_of_the_numbers_is_read(tmp_path):
    data, path = written(tmp_path), tmp_path / "bad.safetensors"
    numbers = sum(tensor.nbytes for tensor in special_values().values())
    for place in range(len(data) - numbers, len(data)):
        path.write_bytes(flipped(data, place))
        with pytest.raises(UserError, match=r"damaged: the checksum of \S+ is wrong"):
            read_native(path)


def test_rows_are_checked_with_the_whole_tensor(tmp_path):
    files.write_native(tmp_path / "a", {"w": np.ones((4, 3), np.float32)}, metadata={})
    data = (tmp_path / "a").read_bytes()
    assert read_tensors(tmp_path / "a").tensors["w"].row(1).read().tolist() == [1, 1, 1]
    (tmp_path / "a").write_bytes(flipped(data, len(data) - 1))
    with pytest.raises(UserError, match="the checksum of w is wrong"):
        read_tensors(tmp_path / "a").tensors["w"].row(1).read()


def test_a_flipped_bit_of_the_metadata_is_not_read(tmp_path):
    metadata = {"name": "x", "fields": {"norm_eps": 1e-6}}
    files.write_native(tmp_path / "a", {"w": np.ones(2, np.float32)}, metadata=metadata)
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data.replace(b"1e-06", b"1e-05"))
    with pytest.raises(UserError, match="the checksum of its metadata is wrong"):
        read_tensors(tmp_path / "a")
    for key in (b"crc32", b"checksum"):  # without its key, a checksum is not missing
        (tmp_path / "a").write_bytes(data.replace(key, b"#" * len(key)))
        with pytest.raises(UserError, match="does not fit"):
            read_tensors(tmp_path / "a")


def test_files_without_checksums_are_read(tmp_path):
    """Older versions wrote them."""
    header = {files.KEY: json.dumps({"version": "0", "metadata": {"name": "x"}})}
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / "a", metadata=header)
    arrays, metadata = read_native(tmp_path / "a")
    assert arrays["a"].tolist() == [1, 1]
    assert metadata == {"name": "x"}


def test_numbers_that_json_has_not_are_not_written(tmp_path):
    for number in (math.nan, math.inf):
        with pytest.raises(UserError, match=r"cannot write .*NaN or an infinity"):
            files.write_native(tmp_path / "a", {}, metadata={"metrics": {"loss": number}})
    assert list(tmp_path.iterdir()) == []


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="nothing: no such file"):
        read_native(tmp_path / "nothing")
    with pytest.raises(UserError, match="no such file"):
        read_native(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "it must be an object"),
        ("{}", "has no 'metadata'"),
        ('{"metadata": 3}', "metadata is 3; it must be an object"),
        ('{"metadata": {"metrics": {"loss": NaN}}}', "is not valid JSON"),
        ('{"metadata": {"metrics": {"loss": "low"}}}', 'metrics.loss is "low"; it must be a numb'),
        ('{"metadata": {"preprocess": {"img_size": [100000, 100000]}}}', "at most 16384"),
        ('{"metadata": {"class_names": [1]}}', "it must be a text"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_metadata_of_no_kind_is_one_line(tmp_path, text, message):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, path, metadata={files.KEY: text})
    with pytest.raises(UserError, match=message) as error:
        read_tensors(path)
    assert len(str(error.value)) < 400


def test_other_programs_files_have_no_metadata_of_ours(tmp_path):
    for header in (None, {"format": "pt"}):
        safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / "a", metadata=header)
        assert read_tensors(tmp_path / "a").metadata is None
