"""Data workers: processes that are lost, closed and signalled."""

import itertools
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from vitswin_jax.core.types import Batch, UserError
from vitswin_jax.data.workers import WorkerBatches

LARGE = 4_000_000  # bytes: many times what a pipe holds


def count(size, index, workers):
    """Gives batches whose images are their numbers."""
    for number in itertools.count(index, workers):
        yield batch_of(np.full(size, number % 256, np.uint8))


def batch_of(image):
    return Batch(image=image, label=np.zeros(1, np.int32), mask=np.ones(1, np.float32))


def counting(size=LARGE):
    return lambda index, workers: count(size, index, workers)


@pytest.fixture
def make():
    """Makes batches by workers, and closes them."""
    made = []

    def make(load, workers):
        made.append(WorkerBatches(load, workers))
        return made[-1]

    yield make
    for batches in made:
        batches.close()


def numbers(batches, many):
    return [int(batch["image"][-1]) for batch in itertools.islice(batches, many)]


def test_batches_come_in_turn_and_end_where_the_first_worker_does(make):
    assert numbers(make(counting(), 3), 8) == list(range(8))
    few = make(lambda index, workers: itertools.islice(count(8, index, workers), 2), 2)
    assert numbers(few, 10) == [0, 1, 2, 3]
    assert not multiprocessing.active_children() or few.close() is None
    assert next(few, "end") == "end"


@pytest.mark.parametrize("wait", [0.0, 0.5], ids=["as it starts", "amid a batch"])
def test_a_killed_worker_is_one_line_that_names_memory(make, wait):
    batches = make(counting(), 2)
    if wait:
        numbers(batches, 3)
        time.sleep(wait)
    workers = multiprocessing.active_children()
    os.kill(workers[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"was killed by SIGKILL.*memory.*fewer data.workers"):
        numbers(batches, 10)
    assert not set(multiprocessing.active_children()) & set(workers)


def test_closing_waits_for_no_full_pipe(make):
    batches = make(counting(), 2)
    numbers(batches, 2)
    time.sleep(0.5)
    began = time.monotonic()
    batches.close()
    assert time.monotonic() - began < 5
    assert next(batches, None) is None


def test_workers_hear_no_signal_that_their_group_is_sent(make):
    """From their first instruction on: an interrupted import would print a traceback."""
    batches = make(counting(), 1)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker.pid, number)
    assert numbers(batches, 2) == [0, 1]


class OddError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def raising(make_error):
    def load(index, workers):
        yield batch_of(np.zeros(3, np.uint8))
        raise make_error()

    return load


@pytest.mark.parametrize(
    ("make_error", "kind", "text"),
    [
        (lambda: UserError("images/a.png: no"), UserError, "^images/a.png: no"),
        (MemoryError, MemoryError, "^"),
        (lambda: OddError(1, 2), RuntimeError, "^OddError: 1 2"),  # cannot be unpickled
    ],
)
def test_an_error_of_a_worker_is_raised_here(make, make_error, kind, text):
    batches = make(raising(make_error), 1)
    next(batches)
    with pytest.raises(kind, match=text) as raised:
        next(batches)
    assert kind is RuntimeError or "in a data worker" in raised.value.__notes__[0]


def test_batches_that_are_kept_stay_as_they_were(make):
    kept = list(itertools.islice(make(counting(), 2), 14))  # more than a worker has slots
    assert [int(batch["image"].min()) for batch in kept] == list(range(14))
    assert [int(batch["image"].max()) for batch in kept] == list(range(14))
