"""A logger of a service neither ends a run nor holds it up, and what it lost is reported."""

import threading

import pytest

from vitswin_jax.train.keep.detached import Detached


class Service:
    """Takes rows, and fails at some of them."""

    def __init__(self, *, fails=(), open_fails=False):
        if open_fails:
            raise ConnectionError("no route\nto host")
        self.rows, self.threads, self._fails, self.closed = [], set(), fails, False

    def log(self, step, numbers):
        self.threads.add(threading.current_thread())
        if step in self._fails:
            raise ConnectionError("no route\nto host")
        self.rows.append((step, dict(numbers)))

    def close(self):
        self.closed = True


def test_rows_come_in_order_on_one_thread_that_is_not_the_runs(caplog):
    service = Service()
    detached, numbers = Detached("mine", lambda: service), {"loss": 0.0}
    for step in range(100):
        numbers["loss"] = step / 2
        detached.log(step, numbers)
    detached.close()
    assert service.rows == [(step, {"loss": step / 2}) for step in range(100)]
    assert service.closed and len(service.threads) == 1
    assert threading.current_thread() not in service.threads
    assert not caplog.messages


def test_a_row_that_fails_is_one_warning_and_later_rows_are_tried(caplog):
    service = Service(fails=(2, 3))
    detached = Detached("mine", lambda: service)
    for step in (1, 2, 3, 4):
        detached.log(step, {})
    detached.close()
    assert [step for step, _ in service.rows] == [1, 4] and service.closed
    assert caplog.messages == [
        "mine: has not taken a row: ConnectionError (no route to host); the run does not wait "
        "for it.",
        "mine: 2 of 4 rows were lost; metrics.jsonl has every row.",
    ]


def test_a_service_that_cannot_be_opened_is_left_out(caplog):
    detached = Detached("mine", lambda: Service(open_fails=True))
    detached.log(1, {})
    detached.close()
    assert caplog.messages == [
        "mine: cannot be opened: ConnectionError (no route to host); the run does not wait for it.",
        "mine: 1 of 1 rows were lost; metrics.jsonl has every row.",
    ]


@pytest.mark.parametrize("where", ["open", "log", "close"])
def test_a_service_that_hangs_is_left_after_its_patience(where, caplog):
    hangs = threading.Event()

    class Slow(Service):
        def log(self, step, numbers):
            if where == "log":
                hangs.wait()

        def close(self):
            if where == "close":
                hangs.wait()

    def make():
        if where == "open":
            hangs.wait()
        return Slow()

    detached = Detached("mine", make, patience=0.2)
    for step in range(10_002 if where == "open" else 3):
        detached.log(step, {})
    detached.close()
    assert caplog.messages[-1] == (
        "mine: did not finish within 0.2 s, so the run ends without it; metrics.jsonl has "
        "every row."
    )
    assert len(caplog.messages) == (2 if where == "open" else 1)
    hangs.set()
