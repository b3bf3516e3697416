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
    keys = "state_dict." if name == "wrapped.pth" else ""
    assert_holds(contents, {keys + own: array for own, array in ARRAYS.items()})
    assert {contents.containers.get(own, "") for own in contents.tensors} == {keys}


@pytest.mark.parametrize("name", WRITERS)
def test_the_name_of_the_file_does_not_matter(tmp_path, name):
    WRITERS[name](tmp_path / name)
    keys = "state_dict." if name == "wrapped.pth" else ""
    contents = read_tensors((tmp_path / name).rename(tmp_path / "weights"))
    assert_holds(contents, {keys + own: array for own, array in ARRAYS.items()})


def test_bfloat16_of_every_format(tmp_path):
    arrays = {"w": (np.arange(6) / 7).astype(ml_dtypes.bfloat16)}
    write_npz(tmp_path / "a.npz", arrays)
    write_safetensors(tmp_path / "a.safetensors", arrays)
    write_pth(tmp_path / "a.pth", arrays, wrapper=None)
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight_map": {}}, "weight_map is {}"),
        ({"weight_map": {"a": 3}}, "weight_map.a is 3; it must be a text"),
        ({"weight_map": {"a": ""}}, "weight_map names ''"),
        ({"weight_map": {"a": "../"}}, "weight_map names '..'"),
        ({"weight_map": {"a": "x" * 300}}, "does not fit maxLength 255"),
        ({"weight_map": {"a": "m.index.json"}}, "names 'm.index.json', which is no weights file"),
        ({"weight_map": {"x" * 10_000: "a", "y" * 10_000: "a"}}, "a: no such file"),
        ({"model_type": "vit"}, "has no 'weight_map'"),
    ],
)
def test_an_index_of_no_files_is_one_line(tmp_path, content, message):
    path = tmp_path / "m.index.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        read_tensors(path)
    assert len(str(error.value)) < 400


def test_a_header_whose_length_ends_as_json_begins(tmp_path):
    """0x7b is a brace; a header is padded with spaces, so that any length can be had."""
    write_safetensors(tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    more = (0x7B - length) % 256
    padded = (length + more).to_bytes(8, "little") + data[8 : 8 + length] + b" " * more
    (tmp_path / "weights").write_bytes(padded + data[8 + length :])
    assert padded[:1] == b"{"
    assert_holds(read_tensors(tmp_path / "weights"), ARRAYS)
    index = tmp_path / "index"  # whose ninth byte is a brace too
    index.write_text(
        '{"meta":{"x": 1}, "weight_map": ' + json.dumps(dict.fromkeys(ARRAYS, "weights"))
    )
    index.write_text(index.read_text() + "}")
    assert_holds(read_tensors(index), ARRAYS)


def test_no_flipped_bit_of_an_npz_is_read(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
    for write in (write_npz, write_compressed):
        write(tmp_path / "a.npz", arrays)
        data = (tmp_path / "a.npz").read_bytes()
        with zipfile.ZipFile(tmp_path / "a.npz") as archive:
            info = archive.getinfo("a.npy")
            begin, end = (
                info.header_offset + 30 + len("a.npy"),
                archive.getinfo("b.npy").header_offset,
            )
        for place in range(begin, end):
            changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            (tmp_path / "b.npz").write_bytes(changed)
            try:
                got = read_tensors(tmp_path / "b.npz").tensors["a"].read()
                assert got.tobytes() == arrays["a"].tobytes()  # the extra field is not read
            except UserError as error:
                assert "damaged" in str(error)


def test_rows_of_an_npz_are_checked_once(tmp_path):
    write_npz(tmp_path / "a.npz", {"w": np.ones((40, 30_000), np.float32)})
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[-1000] ^= 1  # beyond what the header's reading takes in
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"the checksum of w\.npy is wrong"):
        read_tensors(tmp_path / "a.npz").tensors["w"].row(0).read()


def test_claims_of_an_npz_are_bounded_by_the_file(tmp_path):
    path = tmp_path / "a.npz"
    header = b"\x93NUMPY\x02\0" + (1 << 31).to_bytes(4, "little")
    shapes = ["(1000000000000,)", "(-2, -2)", f"(0, {1 << 60})", "(1,)" + " " * 60_000, "-" * 9000]
    headers = [
        b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text
        for shape in shapes
        for text in [b"{'descr': '<f4', 'fortran_order': False, 'shape': %s}" % shape.encode()]
    ]
    for content in [header, header + bytes(300 << 20), *headers]:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("w.npy", content)
        with pytest.raises(UserError, match=r"a\.npz: cannot be read as an npz file"):
            read_tensors(path)


def test_a_member_that_inflates_to_more_than_it_claims(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", bytes(60 << 20))
    data = (tmp_path / "a.npz").read_bytes()
    size = (60 << 20).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(data.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(UserError, match=r"a\.npz"):
        read_tensors(tmp_path / "a.npz")


def test_ranks_are_not_counted_to_the_largest(tmp_path):
    write_pth(tmp_path / "a.pth.master", ARRAYS)
    write_pth(tmp_path / "a.pth.rank99999999999", ARRAYS)
    with pytest.raises(UserError, match=r"a\.pth\.rank0 is missing"):
        read_tensors(tmp_path / "a.pth.master")


def test_names_that_cannot_be_printed_are_refused(tmp_path):
    for name in ("a\nb", "\x1b[2J"):
        write_safetensors(tmp_path / "a", {name: ARRAYS["half"]})
        with pytest.raises(UserError, match="cannot be printed"):
            read_tensors(tmp_path / "a")


def test_keys_of_nested_containers_are_joined():
    contents = read_tensors(Path(__file__).parents[2] / "goldens" / "pth" / "zip.pth")
    assert contents.containers["model.float32"] == "model."
    assert contents.containers["optimizer.state.0.exp_avg"] == "optimizer.state.0."


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
