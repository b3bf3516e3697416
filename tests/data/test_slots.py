"""Memory that workers share with their parent: no batch is overwritten while anyone has it."""

import gc
import multiprocessing
import os
import queue
import threading

import numpy as np
import pytest

from vitswin_jax.data.slots import SLOTS, Shared, make_slots

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux has it")


@pytest.fixture
def ends():
    return make_slots()


def message(number, size=100_000):
    return {"image": np.full((size, 3), number, np.uint8), "label": np.arange(3)}, None


def test_a_message_comes_as_it_was_sent(ends):
    reader, writer = ends
    strided = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    sent = {"a": strided, "b": np.float32(2), "c": np.zeros((0, 4)), "d": np.eye(9), "e": "text"}
    shared = writer.share(sent)
    assert isinstance(shared, Shared)
    read = reader.read(shared)
    assert read.keys() == sent.keys() and read["e"] == "text"
    for name in "abcd":
        np.testing.assert_array_equal(read[name], sent[name], strict=True)
    read["d"][:] = 1  # as a pickled one could be


def test_arrays_begin_where_a_device_wants_them(ends):
    reader, writer = ends
    read, _ = reader.read(writer.share(message(1, size=5)))
    assert [array.ctypes.data % 64 for array in read.values()] == [0, 0]


def test_what_is_kept_is_never_overwritten(ends):
    reader, writer = ends
    kept, shared = [], []
    for number in range(SLOTS + 3):
        sent = writer.share(message(number))
        shared.append(isinstance(sent, Shared))
        kept.append(reader.read(sent)[0]["image"])
    assert shared == [True] * SLOTS + [False] * 3
    assert [int(image.min()) for image in kept] == [*range(SLOTS + 3)]
    assert [int(image.max()) for image in kept] == [*range(SLOTS + 3)]


def test_a_slot_is_free_when_the_last_view_of_it_is_gone(ends):
    reader, writer = ends
    kept = [reader.read(writer.share(message(number)))[0] for number in range(SLOTS)]
    part = kept[0]["image"][10:]
    kept[0] = None
    gc.collect()
    assert not isinstance(writer.share(message(9)), Shared)
    assert int(part.min()) == int(part.max()) == 0
    del part
    gc.collect()
    assert writer.share(message(9)).slot == 0


def test_a_worker_waits_for_a_parent_that_reads_slowly(ends):
    """And takes the slot of the first message, not the pipe."""
    reader, writer = ends
    sent = [writer.share(message(number)) for number in range(SLOTS)]
    late = queue.SimpleQueue()
    threading.Thread(target=lambda: late.put(writer.share(message(9))), daemon=True).start()
    with pytest.raises(queue.Empty):
        late.get(timeout=0.2)
    assert int(reader.read(sent[0])[0]["image"].max()) == 0
    gc.collect()
    assert late.get(timeout=10).slot == sent[0].slot


def test_a_worker_that_waits_ends_with_its_parent(ends):
    writer = ends[1]
    for number in range(SLOTS):
        writer.share(message(number))
    ends[0]._frees.close()
    with pytest.raises(BrokenPipeError):
        writer.share(message(9))


def test_what_no_slot_has_room_for_goes_its_own_way(ends):
    reader, writer = ends
    reader.read(writer.share(message(1, size=10)))
    large = message(2, size=100_000)
    assert writer.share(large) is large
    error = None, ValueError("no array")
    assert writer.share(error) is error


def test_arrays_outlive_both_ends(ends):
    reader, writer = ends
    read = reader.read(writer.share(message(7)))[0]
    del reader, writer, ends
    gc.collect()
    assert int(read["image"].sum()) == 7 * 300_000


def give(pipe, writer):
    for number in range(3):
        pipe.send(writer.share(message(number)))


def test_another_process_writes_and_this_one_reads():
    context = multiprocessing.get_context("spawn")
    reader, writer = make_slots()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=give, args=(there, writer))
    process.start()
    shared = [here.recv() for _ in range(3)]
    process.join()
    assert [int(reader.read(one)[0]["image"].max()) for one in shared] == [0, 1, 2]
