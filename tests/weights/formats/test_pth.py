"""PyTorch's files without PyTorch: what torch wrote, bit for bit, and nothing executed."""

import builtins
import operator
import os
import pickle
import zipfile

import numpy as np
import pytest
import write_pth_fixtures
from hypothesis import given, settings
from hypothesis import strategies as st

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.pth import Stub, read_pth
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
    from vitswin_jax.weights.formats import pth

    assert pth._rebuild_tensor.__defaults__ is None


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
