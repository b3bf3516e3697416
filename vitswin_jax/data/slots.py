"""Memory that a data worker shares with its parent, so that batches do not go through a pipe.

A pipe takes 64 KB at a time and the parent reads it under Python's lock: at 8,000 images/s of
224x224 that is all that one core does. A worker writes the arrays of a batch into a slot instead,
and the parent's arrays are views of it. A slot is free again when the last of them is gone, so a
batch may be kept for as long as anyone likes. A worker without a free slot waits while its parent
has not read all that it has sent, and then sends the batch through the pipe.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import pickle
import weakref
from collections.abc import Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

SLOTS = 4
"""Of a worker: the batch in use, one that is read ahead, one that is written, and one to spare."""
_ALIGNED = mmap.ALLOCATIONGRANULARITY  # of a slot; JAX wants arrays at multiples of 64 bytes
_LINE = 64
_TAKEN = SLOTS  # sent where a message was read, as the number of a slot is where that is free


class Shared(NamedTuple):
    """A message whose arrays are in a slot, by which the parent finds them."""

    slot: int
    slot_size: int
    places: Sequence[tuple[int, int]]  # where each array begins in the slot, and its bytes
    rest: bytes  # the message without its arrays, pickled


class _Descriptor:
    """A file descriptor that a process gets when it is started."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _opened, (reduction.DupFd(self.number),)


def _opened(duplicate: Any) -> _Descriptor:
    return _Descriptor(duplicate.detach())


def make_slots(context: Any = multiprocessing) -> tuple[Reader, Writer | None]:
    """Returns the parent's and the worker's end; None where the system has no such memory."""
    if not hasattr(os, "memfd_create"):  # not Linux
        return Reader(None, None), None
    # Not in /dev/shm, which containers limit to 64 MB by default.
    memory = os.memfd_create("batches")
    freed, frees = context.Pipe(duplex=False)
    return Reader(memory, frees), Writer(_Descriptor(memory), freed)


class Writer:
    """A worker's end."""

    def __init__(self, memory: _Descriptor, freed: Connection) -> None:
        self._memory, self._freed = memory, freed
        self._slot_size = 0
        self._map: mmap.mmap | None = None
        self._free = set(range(SLOTS))
        self._unread = 0

    def share(self, message: Any) -> Any:
        """Returns the object to send for a message: a `Shared`, or itself if no slot takes it.

        Raises BrokenPipeError if the parent has ended.
        """
        arrays: list[pickle.PickleBuffer] = []
        rest = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
        views = [array.raw() for array in arrays]
        starts, end = [], 0
        for view in views:
            starts.append(end)
            end += -(-view.nbytes // _LINE) * _LINE
        while self._freed.poll(0) or (not self._free and self._unread):
            self._hear()
        if not end or not self._free or not self._fits(end):
            return message
        assert self._map is not None  # as `_fits` has made it
        slot = self._free.pop()
        self._unread += 1
        places = [(start, view.nbytes) for start, view in zip(starts, views, strict=True)]
        begin = slot * self._slot_size
        for (start, size), view in zip(places, views, strict=True):
            self._map[begin + start : begin + start + size] = view
        return Shared(slot, self._slot_size, places, rest)

    def _hear(self) -> None:
        """Waits for a word of the parent: a slot is free, or a message was read."""
        try:
            word = self._freed.recv_bytes()[0]
        except EOFError:
            raise BrokenPipeError from None
        if word == _TAKEN:
            self._unread -= 1
        else:
            self._free.add(word)

    def _fits(self, size: int) -> bool:
        """Returns whether a slot has room; the first message decides how much one has."""
        if self._map is None:
            self._slot_size = -(-size // _ALIGNED) * _ALIGNED
            os.ftruncate(self._memory.number, SLOTS * self._slot_size)
            self._map = mmap.mmap(self._memory.number, SLOTS * self._slot_size)
        return size <= self._slot_size


class Reader:
    """The parent's end."""

    def __init__(self, memory: int | None, frees: Connection | None) -> None:
        self._frees = frees
        self._map: mmap.mmap | None = None
        self._memory = memory
        if memory is not None:
            weakref.finalize(self, os.close, memory).atexit = False

    def read(self, message: Any) -> Any:
        """Returns the message of a worker; its arrays are writable."""
        if not isinstance(message, Shared):
            return message
        assert self._memory is not None and self._frees is not None  # as a worker has written
        if self._map is None:
            self._map = mmap.mmap(self._memory, SLOTS * message.slot_size)
        _tell(self._frees, _TAKEN)
        begin = message.slot * message.slot_size
        whole: Any = np.frombuffer(self._map, np.uint8, message.slot_size, begin)
        weakref.finalize(whole, _tell, self._frees, message.slot).atexit = False
        buffers = [memoryview(whole[start : start + size]) for start, size in message.places]
        return pickle.loads(message.rest, buffers=buffers)


def _tell(frees: Connection, word: int) -> None:
    """Sends a worker a word, unless it has ended."""
    with contextlib.suppress(OSError):
        frees.send_bytes(bytes((word,)))
