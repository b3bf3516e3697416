"""Processes that load batches ahead of time, each with a pipe of its own.

Not Grain's: it waits for ever for a batch that a killed process was sending, and 25 s for a
process that is stopped with a batch in its pipe.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import util
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from vitswin_jax.core.heap import keep_freed_images
from vitswin_jax.core.signals import children_without_signals
from vitswin_jax.core.types import Batch, UserError
from vitswin_jax.data.slots import Reader, Writer, make_slots

_SPAWN = multiprocessing.get_context("spawn")

Load = Callable[[int, int], Iterator[Batch]]
"""(n, workers) -> every `workers`-th batch from the n-th on; sent to workers by cloudpickle."""


class WorkerBatches(Iterator[Batch]):
    """The batches that `count` processes load, in order: each process every `count`-th one.

    Its `close()` ends the processes, and so does Python's exit. Raises what a process raised, and
    UserError where one was lost.
    """

    def __init__(self, load: Load, count: int) -> None:
        program = cloudpickle.dumps(load)
        with children_without_signals():
            self._workers = [_Worker(program, index, count) for index in range(count)]
        self._turn = 0
        # Before Python's own end of processes, which asks them by a signal that they do not hear.
        self.close = util.Finalize(self, _end, (self._workers,), exitpriority=10)

    def __next__(self) -> Batch:
        if not self.close.still_active():
            raise StopIteration
        try:
            batch = self._workers[self._turn % len(self._workers)].take()
        except BaseException:
            self.close()
            raise
        self._turn += 1
        return batch


class _Worker:
    """One process, and a thread that reads its next batch while this one is used."""

    def __init__(self, program: bytes, index: int, count: int) -> None:
        here, there = _SPAWN.Pipe(duplex=False)
        reader, writer = make_slots()
        self.process = _SPAWN.Process(
            target=_work,
            args=(there, writer, program, index, count),
            name="data worker",
            daemon=True,
        )
        self.process.start()
        there.close()  # so that the pipe ends with the process
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._read: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(
            target=_read,
            args=(here, reader, self._asked, self._read),
            name="data reader",
            daemon=True,
        ).start()
        self._asked.put(True)

    def take(self) -> Batch:
        """Returns the next batch, or raises what stands in its place."""
        message = self._read.get()
        if message is None:
            raise self._lost()
        batch, error = message
        if error is not None:
            raise error
        self._asked.put(True)
        return batch

    def _lost(self) -> UserError:
        self.process.join(5)
        status = self.process.exitcode
        worker = f"a data worker (process {self.process.pid})"
        if status is None or status >= 0:
            return UserError(f"{worker} ended with status {status}; see what it printed.")
        return UserError(
            f"{worker} was killed by {signal.Signals(-status).name}. The likely cause is a lack of "
            "memory, for which the system kills processes: set fewer data.workers, a smaller "
            "data.batch_size, or give the machine or the container more memory."
        )

    def end(self) -> None:
        """Ends the process and the thread."""
        self.process.kill()
        self._asked.put(False)
        self.process.join()


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.end()


def _read(
    pipe: Connection,
    reader: Reader,
    asked: queue.SimpleQueue[bool],
    read: queue.SimpleQueue[Any],
) -> None:
    """Reads a message whenever it is asked for one; None is the end of a process without one."""
    with pipe:
        while asked.get():
            try:
                read.put(reader.read(pipe.recv()))
            except (EOFError, OSError):
                read.put(None)


def _work(pipe: Connection, writer: Writer | None, program: bytes, index: int, count: int) -> None:
    """Is a worker: sends each batch with None, and at last None with what ended the batches."""
    keep_freed_images()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for batch in cloudpickle.loads(program)(index, count):
            message = batch, None
            pipe.send(message if writer is None else writer.share(message))
        last: Exception = StopIteration()
    except BrokenPipeError:
        return  # the parent has ended
    except Exception as error:
        error.add_note(f"in a data worker:\n{traceback.format_exc()}")
        last = _sendable(error)
    with contextlib.suppress(BrokenPipeError):
        pipe.send((None, last))


def _sendable(error: Exception) -> Exception:
    """Returns an error that another process can read: itself, or one of its text."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    """Ends this process with its parent: one that is killed cannot."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
