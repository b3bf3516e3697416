"""Slices of a mesh: which devices they have, what they refuse, and that they change no number."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.train import slices
from vitswin_jax.train.sharding import check_batch_size, create_mesh, shard_batch


@dataclasses.dataclass(frozen=True)
class Device:
    """A device as a platform reports it; no program runs on it."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "none"


def devices_of(*sizes, hosts=1, platform="gpu"):
    """Devices of slices of the given sizes, each slice of so many hosts."""
    found = []
    for index, size in enumerate(sizes):
        for i in range(size):
            host = index * hosts + i * hosts // size
            found.append(Device(len(found), host, index, platform))
    return found


def test_slices_are_what_the_devices_report():
    found = devices_of(4, 4, 4, platform="cpu")
    assert slices.count_slices(found, None) == slices.count_slices(found, 3) == 3
    grid = slices.arrange(found[::-1], slices=3, shape=(2, 2, 1))
    assert grid.shape == (3, 2, 2, 1)
    assert [{device.slice_index for device in part.ravel()} for part in grid] == [{0}, {1}, {2}]
    assert slices.count_slices(jax.devices(), None) == 1


def test_nodes_of_gpus_may_be_one_slice_or_several():
    """Four nodes of two GPUs: each node a slice, or one mesh, or pairs of nodes."""
    found = devices_of(2, 2, 2, 2)
    for count, nodes in ((4, [{0}, {1}, {2}, {3}]), (2, [{0, 1}, {2, 3}]), (1, [{0, 1, 2, 3}])):
        assert slices.count_slices(found, count) == count
        grid = slices.arrange(found, slices=count, shape=(8 // count, 1, 1))
        assert [{device.slice_index for device in part.ravel()} for part in grid] == nodes
    assert slices.count_slices(found, None) == 4


@pytest.mark.parametrize(
    ("sizes", "platform", "wanted", "message"),
    [
        ((4, 3), "tpu", None, "as many devices as the others: slice 0 has 4, slice 1 has 3"),
        ((4, 3), "gpu", 2, "as many devices as the others: slice 0 has 4, slice 1 has 3"),
        ((4, 4, 4), "tpu", 4, "mesh.slices=4, and the TPUs are 3 slices; leave it None, or start"),
        ((4, 4), "tpu", 1, "mesh.slices=1, and the TPUs are 2 slices"),
        ((4, 4), "gpu", 3, "mesh.slices=3 does not divide the 8 devices; it can be 1, 2, 4, 8"),
        ((8,), "cpu", 3, "mesh.slices=3 does not divide the 8 devices; it can be 1, 2, 4, 8"),
        ((8,), "cpu", 0, "mesh.slices=0 must be 1 or more, or None"),
        ((8,), "cpu", -1, "mesh.slices=-1 must be 1 or more, or None"),
        ((1,) * 99 + (2,), "tpu", None, "slice 7 has 1, ..."),
    ],
)
def test_slices_that_cannot_be_are_one_line(sizes, platform, wanted, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        slices.count_slices(devices_of(*sizes, platform=platform), wanted)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_host_is_of_one_slice():
    slices.check_whole_hosts(np.array([[0, 0, 1, 1], [2, 2, 3, 3]]))
    slices.check_whole_hosts(np.zeros((2, 4), int))
    with pytest.raises(UserError, match=r"mesh.slices=2 cuts host 1 in two.* it can be 1, 3"):
        slices.check_whole_hosts(np.array([[0, 0, 1], [1, 2, 2]]))


def test_slices_are_an_axis_of_the_mesh():
    assert "slice" not in create_mesh(slices=1).shape
    mesh = create_mesh(slices=2, fsdp=2)
    assert dict(mesh.shape) == {"slice": 2, "data": 2, "fsdp": 2, "tensor": 1}
    assert [device.id for device in mesh.devices[1].ravel()] == [4, 5, 6, 7]
    images = shard_batch({"image": np.zeros((16, 2))}, mesh)["image"]
    assert {shard.data.shape for shard in images.addressable_shards} == {(2, 2)}
    with pytest.raises(UserError, match=r"of 8, which is slices x mesh.data x mesh.fsdp; 16 is"):
        check_batch_size("data.batch_size", 12, mesh)


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 8}, {"data": 1}, {"tensor": 3}], ids=str)
def test_the_other_axes_lie_inside_a_slice(sizes):
    with pytest.raises(
        UserError, match=r"must multiply to the 4 devices of each of the 2 slices"
    ) as error:
        create_mesh(slices=2, **sizes)
    assert "\n" not in str(error.value)
