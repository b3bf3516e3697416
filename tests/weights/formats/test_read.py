"""Files of every format as state dicts: the same tensors, and one line for what is no such file."""

import json
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.pth_write import write_pth
from vitswin_jax.weights.formats.read import read_tensors

ARRAYS = {
    "a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.float16([1.5, -0.0, 65504]),
    "scalar": np.array(2, np.float32),
    "empty": np.zeros((0, 2), np.float32),
    "index": np.arange(4),
}


def write_npz(path, arrays=ARRAYS):
    np.savez(path, **arrays)


def write_safetensors(path, arrays=ARRAYS):
    safetensors.numpy.save_file(arrays, path)


def write_compressed(path, arrays=ARRAYS):
    np.savez_compressed(path, **arrays)


WRITERS = {
    "a.npz": write_npz,
    "compressed.npz": write_compressed,
    "a.safetensors": write_safetensors,
    "a.pth": lambda path: write_pth(path, ARRAYS, wrapper=None),
    "wrapped.pth": lambda path: write_pth(path, ARRAYS, wrapper="state_dict"),
}


def assert_holds(contents, arrays):
    assert contents.tensors.keys() == arrays.keys()
    for name, want in arrays.items():
        tensor = contents.tensors[name]
        got = tensor.read()
        assert (tensor.shape, tensor.dtype) == (got.shape, got.dtype) == (want.shape, want.dtype)
        assert got.tobytes() == want.tobytes()
        if want.ndim and len(want):
            assert tensor.row(len(want) - 1).read().tobytes() == want[-1].tobytes()


@pytest.mark.parametrize("name", WRITERS)
def test_tensors_are_what_was_written(tmp_path, name):
    WRITERS[name](tmp_path / name)
    contents = read_tensors(tmp_path / name)
    assert_holds(contents, ARRAYS)
    assert contents.wrapper == ("state_dict" if name == "wrapped.pth" else None)


@pytest.mark.parametrize("name", WRITERS)
def test_the_name_of_the_file_does_not_matter(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert_holds(read_tensors((tmp_path / name).rename(tmp_path / "weights")), ARRAYS)


def test_bfloat16_of_every_format(tmp_path):
    arrays = {"w": (np.arange(6) / 7).astype(ml_dtypes.bfloat16)}
    write_npz(tmp_path / "a.npz", arrays)
    write_safetensors(tmp_path / "a.safetensors", arrays)
    write_pth(tmp_path / "a.pth", arrays)
    for name in ("a.npz", "a.safetensors", "a.pth"):
        assert_holds(read_tensors(tmp_path / name), arrays)


def test_arrays_in_fortran_order(tmp_path):
    write_npz(tmp_path / "a.npz", {"w": np.asfortranarray(ARRAYS["a/kernel"])})
    assert_holds(read_tensors(tmp_path / "a.npz"), {"w": ARRAYS["a/kernel"]})


def test_an_index_of_shards(tmp_path):
    names = list(ARRAYS)
    write_safetensors(tmp_path / "1.safetensors", {n: ARRAYS[n] for n in names[:2]})
    write_safetensors(tmp_path / "2.safetensors", {n: ARRAYS[n] for n in names[2:]})
    shards = {n: f"{1 + (i > 1)}.safetensors" for i, n in enumerate(names)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert_holds(read_tensors(index), ARRAYS)
    index.write_text(json.dumps({"weight_map": {**shards, "more": "1.safetensors"}}))
    with pytest.raises(UserError, match=r"index\.json: its files lack more"):
        read_tensors(index)
    index.write_text(json.dumps({"weight_map": {"a": "../../3.safetensors"}}))
    with pytest.raises(UserError, match=r"3\.safetensors: no such file"):
        read_tensors(index)


def test_what_stands_beside_the_state_dict_is_left_out():
    contents = read_tensors(Path(__file__).parents[2] / "goldens" / "pth" / "zip.pth")
    assert contents.wrapper == "model"
    assert "float32" in contents.tensors
    assert "optimizer.state.0.exp_avg" in contents.left_out


def test_pickled_objects_in_an_npz_are_refused(tmp_path):
    write_npz(tmp_path / "a.npz", {"w": np.array([{}, 1], object), "v": np.zeros(2)})
    with pytest.raises(UserError, match=r"a\.npz: w are pickled Python objects") as error:
        read_tensors(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[1]", b"\x89PNG\r\n\x1a\n" * 9, b"x" * 99])
@pytest.mark.parametrize("name", ["a.pth", "a.npz", "a.safetensors", "a.json"])
def test_other_files_are_one_line(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as error:
        read_tensors(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_zip_of_other_things(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"a\.npz"):
        read_tensors(tmp_path / "a.npz")


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_one_line_or_read(tmp_path_factory, name, data):
    path = tmp_path_factory.mktemp("formats") / name
    WRITERS[name](path)
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        for tensor in read_tensors(path).tensors.values():
            tensor.read()
    except UserError as error:
        assert "\n" not in str(error)
