"""PyTorch's files without PyTorch: what torch wrote, bit for bit, and nothing executed."""

import builtins
import operator
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import write_pth_fixtures
from hypothesis import given, settings
from hypothesis import strategies as st

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.pickles import Stub
from vitswin_jax.weights.formats.pth import read_pth
from vitswin_jax.weights.formats.pth_write import tensor_pickle, write_pth
from vitswin_jax.weights.formats.tensors import Tensor

FIXTURES = write_pth_fixtures.FIXTURES


def assert_bits(tensor, want):
    got = tensor.read()
    assert (tensor.shape, tensor.dtype) == (got.shape, got.dtype) == (want.shape, want.dtype)
    assert got.tobytes() == np.asarray(want).tobytes()


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_what_torch_wrote_is_read_bit_for_bit(layout):
    loaded = read_pth(FIXTURES / f"{layout}.pth")
    assert loaded["model"].keys() == write_pth_fixtures.expected().keys()
    for name, want in write_pth_fixtures.expected().items():
        assert_bits(loaded["model"][name], want)
    assert loaded["epoch"] == 3
    assert isinstance(loaded["args"], Stub)
    assert loaded["optimizer"]["state"][0]["exp_avg"].shape == (2,)


def test_a_file_zipped_again_with_compression_is_read(tmp_path):
    with (
        zipfile.ZipFile(FIXTURES / "zip.pth") as source,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    loaded = read_pth(tmp_path / "a.pth")
    for name, want in write_pth_fixtures.expected().items():
        assert_bits(loaded["model"][name], want)


@pytest.mark.parametrize("zipped", [True, False])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_random_views_equal_torchs(tmp_path_factory, zipped, data):
    torch = pytest.importorskip("torch")
    dtype = data.draw(st.sampled_from([*write_pth_fixtures.DTYPES, "bfloat16"]))
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
    view = (torch.rand(shape) * 9 - 4).to(getattr(torch, dtype))
    if shape:
        view = view.permute(*data.draw(st.permutations(range(len(shape)))))
        start, step = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 3))
        view = view[start::step]
    path = tmp_path_factory.mktemp("pth") / "a.pth"
    torch.save({"a": view, "b": [view]}, path, _use_new_zipfile_serialization=zipped)
    loaded = read_pth(path)
    want = torch.empty(view.shape, dtype=view.dtype).copy_(torch.load(path)["a"])
    for tensor in (loaded["a"], loaded["b"][0]):
        assert tensor.shape == tuple(want.shape)
        assert tensor.read().tobytes() == want.reshape(-1).view(torch.uint8).numpy().tobytes()


class CfgNode(dict):
    """As yacs has it: a dict with state of its own."""


class Evil:
    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced

    def __call__(self):  # or pickle would not take it for a function
        raise AssertionError


def test_nothing_is_executed(tmp_path):
    trace = tmp_path / "trace"
    evil = [
        Evil(os.system, f"touch {trace}"),
        Evil(builtins.exec, f"open({str(trace)!r}, 'w')"),
        Evil(builtins.open, str(trace), "w"),
        Evil(Evil(operator.methodcaller, "touch"), trace),
        CfgNode(a=1),
    ]
    pickle.loads(pickle.dumps(evil[0]))  # it does work on those who let it
    assert trace.exists()
    trace.unlink()
    path = tmp_path / "evil.pth"
    for protocol in range(2, 5):
        path.write_bytes(pickle.dumps({"model": {}, "evil": evil}, protocol=protocol))
        loaded = read_pth(path)
        assert all(isinstance(item, Stub) for item in loaded["evil"])
        assert not trace.exists()


def test_state_reaches_no_object(tmp_path):
    """A pickle could else give our own functions other defaults: BUILD with slots."""
    slots = pickle.dumps((None, {"__defaults__": (1,)}), 2)[2:-1]
    stream = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + slots + b"b."
    (tmp_path / "a.pth").write_bytes(stream)
    read_pth(tmp_path / "a.pth")
    from vitswin_jax.weights.formats import pickles

    assert pickles._rebuild_tensor.__defaults__ is None


def storage_pickle(offset=0, shape=(2,), strides=(1,), count=2, kind="Float"):
    """Returns a pickle whose one tensor claims what the arguments say of eight bytes."""
    tensor = tensor_pickle(kind, "0", count=count, shape=shape, strides=strides, offset=offset)
    return b"\x80\x02}" + pickle.dumps("w", 2)[2:-1] + tensor + b"s."


def write_zip(path, data_pkl, storage=b"\0" * 8):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data_pkl)
        archive.writestr("a/data/0", storage)


def test_tensors_stay_inside_their_storage(tmp_path):
    path = tmp_path / "bad.pth"
    write_zip(path, storage_pickle())
    assert_bits(read_pth(path)["w"], np.zeros(2, np.float32))
    lies = [
        {"shape": (3,)}, {"offset": 1}, {"strides": (2,)}, {"offset": -1}, {"shape": (-2,)},
        {"strides": (-1,)}, {"count": 3}, {"strides": ()}, {"kind": "QInt8"},
        {"shape": (1 << 62, 1 << 62), "strides": (1, 1)},
    ]  # fmt: skip
    for lie in lies:
        write_zip(path, storage_pickle(**lie))
        with pytest.raises(UserError, match=r"bad\.pth: cannot be read as a PyTorch file") as e:
            read_pth(path)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_a_truncated_file_is_one_line(tmp_path, layout):
    data, path = (FIXTURES / f"{layout}.pth").read_bytes(), tmp_path / "cut.pth"
    for size in range(0, len(data), 97):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match=r"cut\.pth: .*cut short") as error:
            read_pth(path)
        assert "\n" not in str(error.value)


def read_all(value):
    if isinstance(value, Tensor):
        value.read()
    elif isinstance(value, dict):
        for item in value.values():
            read_all(item)


@pytest.mark.parametrize("layout", ["zip", "legacy"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_one_line_or_read(tmp_path_factory, layout, data):
    raw = bytearray((FIXTURES / f"{layout}.pth").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("pth") / "a.pth"
    path.write_bytes(raw)
    try:
        read_all(read_pth(path))
    except UserError as error:
        assert "\n" not in str(error)


def test_no_flipped_bit_of_a_zip_files_numbers_is_read(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32), "b": np.ones(3, np.float32)}
    write_pth(tmp_path / "a.pth", arrays, wrapper=None)
    data = (tmp_path / "a.pth").read_bytes()
    places = [data.index(array.tobytes()) for array in arrays.values()]
    places += [data.index(b"_rebuild_tensor_v2"), data.index(b"X\x01\0\0\0b") + 5]
    for place in places:
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        (tmp_path / "b.pth").write_bytes(changed)
        with pytest.raises(UserError, match=r"b\.pth: is damaged: the checksum of \S+ is wrong"):
            read_all(read_pth(tmp_path / "b.pth"))


def test_a_file_that_torch_wrote_without_checksums_is_read(tmp_path):
    """As torch.serialization.set_crc32_options(False) has it: all are 0."""
    write_pth(tmp_path / "a.pth", write_pth_fixtures.expected())
    data = bytearray((tmp_path / "a.pth").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        members = archive.infolist()
    place = archive.start_dir
    for info in members:
        data[info.header_offset + 14 : info.header_offset + 18] = bytes(4)
        data[place + 16 : place + 20] = bytes(4)
        place += 46 + len(info.filename) + len(info.extra)
    (tmp_path / "a.pth").write_bytes(data)
    for name, want in write_pth_fixtures.expected().items():
        assert_bits(read_pth(tmp_path / "a.pth")["model"][name], want)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n", b"\x80\x02", b"PK\x03\x04"])
def test_other_files_are_one_line(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pth: cannot be read as a PyTorch file"):
        read_pth(tmp_path / "a.pth")
    write_zip(tmp_path / "b.pth", b"")
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
        archive.writestr("readme", "")
    for name in ("b", "c"):
        with pytest.raises(UserError, match=f"{name}.pth"):
            read_pth(tmp_path / f"{name}.pth")


@pytest.mark.parametrize("wrapper", ["model", None])
def test_what_is_written_comes_back(tmp_path, wrapper):
    arrays = write_pth_fixtures.expected()
    write_pth(tmp_path / "a.pth", arrays, wrapper=wrapper)
    loaded = read_pth(tmp_path / "a.pth")
    loaded = loaded[wrapper] if wrapper else loaded
    assert list(loaded) == list(arrays)
    for name, want in arrays.items():
        assert_bits(loaded[name], want)


def test_torch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = write_pth_fixtures.expected()
    write_pth(tmp_path / "a.pth", arrays)
    for options in ({}, {"mmap": True}):
        loaded = torch.load(tmp_path / "a.pth", weights_only=True, **options)["model"]
        assert list(loaded) == list(arrays)
        for name, want in write_pth_fixtures.checkpoint()["model"].items():
            assert loaded[name].dtype == want.dtype
            torch.testing.assert_close(loaded[name], want.detach(), rtol=0, atol=0, equal_nan=True)


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write_pth(tmp_path / name / "a.pth", write_pth_fixtures.expected())
    assert (tmp_path / "x/a.pth").read_bytes() == (tmp_path / "y/a.pth").read_bytes()


def bombs():
    """Small files that claim, share or repeat more than a machine has, by what they do."""
    text = pickle.dumps("x", 2)[2:-1]
    doubled = b"K\x01K\x01\x86" + b"2\x86" * 100  # ((1, 1), (1, 1)), ...: 2**100 parts
    size = b"ctorch\nSize\n(" + b"K\x01" * 30 + b"t\x85R"
    yield "long", b"\x80\x02\x8b" + (3 << 30).to_bytes(4, "little") + b"\x01."
    yield "text", b"\x80\x04X" + (3 << 30).to_bytes(4, "little") + b"ab."
    yield "text of 2**62 bytes", b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little") + b"ab."
    yield "bytes", b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"ab."
    yield "bytearray", b"\x80\x05\x96" + (3 << 30).to_bytes(8, "little") + b"ab."
    yield "frame", b"\x80\x04\x95" + (3 << 30).to_bytes(8, "little") + b"}."
    yield "key that hashes for ever", b"\x80\x02}" + doubled + b"K\x01s."
    yield "set that hashes for ever", b"\x80\x04\x8f(" + doubled + b"\x90."
    yield "frozenset", b"\x80\x04(" + doubled + b"\x91."
    yield "dict by its items", b"\x80\x02(" + doubled + b"K\x01d."
    yield "ordered dict", b"\x80\x02ccollections\nOrderedDict\n](" + doubled + b"K\x01\x86e\x85R."
    yield "tuples that flatten for ever", b"\x80\x02}" + text + doubled + b"s."
    yield (
        "lists that flatten for ever",
        (
            b"\x80\x02}"
            + text
            + b"K\x01"
            + b"".join(b"q%c0](h%ch%ce" % (n, n, n) for n in range(60))
            + b"s."
        ),
    )
    yield "list in itself", b"\x80\x02}" + text + b"]q\x01h\x01as."
    yield "tuples 100,000 deep", b"\x80\x02}" + text + b")" + b"\x85" * 100_000 + b"s."
    yield "key 100,000 deep", b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s."
    yield (
        "storage's name",
        b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\n" + doubled + b"NK\x01tQ.",
    )
    yield "size of a size", b"\x80\x02" + size * 20_000 + b"."
    yield (
        "copies of a list",
        (
            b"\x80\x02]("
            + b"K\x01K\x02\x86" * 20_000
            + b"eq\x01ccollections\nOrderedDict\nq\x02"
            + b"h\x02h\x01\x85R" * 20_000
            + b"."
        ),
    )
    yield "text that is a number", b"\x80\x02I" + b"9" * 1_000_000 + b"\n."


LIMITED = """
import resource, sys, time
from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.read import read_tensors
from pathlib import Path
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), -1))
for name in sys.argv[1:]:
    start = time.monotonic()
    try:
        for tensor in read_tensors(Path(name)).tensors.values():
            tensor.read()
        print(Path(name).name, "is read")
    except UserError as error:
        print(Path(name).name, time.monotonic() - start < 20, str(error).removeprefix(name))
"""


@pytest.mark.long
def test_claims_take_neither_time_nor_memory(tmp_path):
    """Half a GB and seconds are enough to refuse each of some small hostile files."""
    for name, content in bombs():
        (tmp_path / name).write_bytes(content)
        with zipfile.ZipFile(tmp_path / f"{name}, zipped", "w") as archive:
            archive.writestr("a/data.pkl", content)
    with zipfile.ZipFile(tmp_path / "deflated", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"]" * (200 << 20))
    (tmp_path / "steps").write_bytes(b"\x80\x02" + b"]" * (10 << 20))
    write_zip(tmp_path / "broadcast", storage_pickle(shape=(1 << 40,), strides=(0,)))
    write_zip(tmp_path / "nothing times much", storage_pickle(shape=(0, 1 << 60), strides=(1, 1)))
    write_zip(tmp_path / "many axes", storage_pickle(shape=(1,) * 1000, strides=(0,) * 1000))
    shared = tensor_pickle("Float", "0", count=2, shape=(1 << 20,), strides=(0,))
    items = b"".join(pickle.dumps(str(i), 2)[2:-1] + shared for i in range(100))
    write_zip(tmp_path / "many", b"\x80\x02}(" + items + b"u.")
    paths = sorted(map(str, tmp_path.iterdir()))
    lines = subprocess.run(
        [sys.executable, "-c", LIMITED, *paths],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert lines.returncode == 0, lines.stderr
    lines = lines.stdout.splitlines()
    assert [line for line in lines if " True : " not in line] == []
    assert len(lines) == len(paths)
    assert max(map(len, lines)) < 400
