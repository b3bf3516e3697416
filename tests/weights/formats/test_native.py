"""Native files: bit-exact, whole or absent, and one clear line for whatever else is found."""

import stat
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats import native as files


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
    metadata = {"class_names": ["ä", "<b>"], "metrics": {"test/accuracy": 0.1}, "none": None}
    files.write_native(tmp_path / "a.safetensors", tensors, metadata=metadata)
    got, got_metadata = files.read_native(tmp_path / "a.safetensors")
    assert got_metadata == metadata == files.read_native_metadata(tmp_path / "a.safetensors")
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert got[name].dtype == np.float32
        assert got[name].shape == tensor.shape
        assert got[name].tobytes() == tensor.tobytes()


def test_strides_are_honoured(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    views = {"t": array.transpose(2, 0, 1), "f": np.asfortranarray(array[0]), "r": array[:, ::-2]}
    files.write_native(tmp_path / "a.safetensors", views, metadata={})
    got, _ = files.read_native(tmp_path / "a.safetensors")
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
    files.write_native(tmp_path / "a", special_values(), metadata={"x": 1})
    return (tmp_path / "a").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"more",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"?" + data[9:],
        lambda data: b"\x89PNG\r\n\x1a\n" + data,
    ],
)
@pytest.mark.parametrize("read", [files.read_native, files.read_native_metadata])
def test_damaged_file_is_one_line(tmp_path, damage, read):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(damage(written(tmp_path)))
    with pytest.raises(UserError, match=r"bad\.safetensors: cannot be read as a safetensors") as e:
        read(path)
    assert "\n" not in str(e.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="nothing: no such file"):
        files.read_native(tmp_path / "nothing")
    with pytest.raises(UserError, match="no such file"):
        files.read_native(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "written by another program: .* has nothing"),
        ({"format": "pt"}, "written by another program: .* has format='pt'"),
        ({files.KEY: "{"}, "no JSON object"),
        ({files.KEY: "[1]"}, "no JSON object"),
        ({files.KEY: "{}"}, "no JSON object"),
        ({files.KEY: '{"metadata": 3}'}, "no JSON object"),
    ],
)
def test_foreign_header_is_one_line(tmp_path, header, message):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, path, metadata=header)
    with pytest.raises(UserError, match=message):
        files.read_native(path)
