"""Times of a run's activities, and traces of steps for XProf; neither makes a device wait."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from vitswin_jax.core.goodput import DEVICE, EVALUATE, INPUT, SAVE
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError

log = logger(__name__)

Item = TypeVar("Item")

KINDS = (INPUT, DEVICE, EVALUATE, SAVE)
INPUT_BOUND = 0.2
"""A run that waits for input for a larger share of its time logs a warning."""
JUDGED = 30.0
DEFAULT_WINDOW = (10, 20)


class Laps:
    """Divides the host's time among `KINDS`: each lap says what the time since the last one was.

    A host runs ahead of its devices and waits for them where it fetches their numbers; so what it
    waits for input is time that a device has nothing to do, once it has caught up.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        since: float | None = None,
        count: Callable[..., None] = lambda kind, seconds, *, waited: None,
    ) -> None:
        """`clock` gives seconds; the first lap is from `since`. `count` is given each lap too."""
        self._clock, self._count = clock, count
        self._last = clock() if since is None else since
        self._spent = dict.fromkeys(KINDS, 0.0)

    def lap(self, kind: str, *, waited: bool = False) -> None:
        """Counts the time since the last lap as `kind`: one of `KINDS`, or of a run's start.

        `waited` says that the host only waited for its devices.
        """
        now = self._clock()
        if kind in self._spent:
            self._spent[kind] += now - self._last
        self._count(kind, now - self._last, waited=waited)
        self._last = now

    def turn(self) -> dict[str, float]:
        """Returns the seconds of each kind since the last turn."""
        spent, self._spent = self._spent, dict.fromkeys(KINDS, 0.0)
        return spent

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """Gives the items of a run's input; what comes before one is asked for is saving."""
        self.lap(SAVE)
        for item in items:
            self.lap(INPUT)
            yield item
            self.lap(SAVE)


def shares(spent: Mapping[str, float]) -> dict[str, float]:
    """Returns seconds of each kind as shares of all, in [0, 1]."""
    total = sum(spent.values())
    return {kind: seconds / total if total else 0.0 for kind, seconds in spent.items()}


class InputWatch:
    """Says once that a run waits for its input; not of its first window, when workers start."""

    def __init__(self) -> None:
        self._first, self._said = True, False
        self._spent = dict.fromkeys(KINDS, 0.0)

    def see(self, step: int, spent: Mapping[str, float]) -> None:
        """Takes a window's seconds of each kind; windows are judged `JUDGED` seconds at a time."""
        if self._first or self._said:
            self._first = False
            return
        self._spent = {kind: self._spent[kind] + spent[kind] for kind in KINDS}
        if sum(self._spent.values()) < JUDGED:
            return
        share, self._spent = shares(self._spent)[INPUT], dict.fromkeys(KINDS, 0.0)
        if share > INPUT_BOUND:
            self._said = True
            log.warning(
                "step %d: the run waited for input %.0f %% of the time. More data.workers (up "
                "to the host's cores), smaller image files or less config.augment make it "
                "faster (docs/train.md).",
                step,
                100 * share,
            )


def parse_window(text: str) -> tuple[int, int]:
    """Returns START and STOP of "START:STOP", steps of a run from where it begins.

    "true", the value of a bare flag, is `DEFAULT_WINDOW`. Raises UserError for anything else.
    """
    if text == "true":
        return DEFAULT_WINDOW
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise UserError(
            f"--profile={text} must be START:STOP, two step numbers counted from the start of "
            "this process, such as 10:20."
        )
    return int(match[1]), int(match[2])


@contextlib.contextmanager
def profiled(
    step: Callable[..., tuple[Any, Any]], window: tuple[int, int] | None, folder: Path
) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """Gives a train step of which the calls of a window are traced into `folder` for XProf.

    The devices are waited for once, at the window's end. None for the window: no trace.
    """
    if window is None:
        yield step
        return
    start, stop = window
    calls = 0

    def traced(*args: Any) -> tuple[Any, Any]:
        nonlocal calls
        if calls == start:
            jax.profiler.start_trace(folder)
        with jax.profiler.StepTraceAnnotation("train", step_num=calls):
            state, metrics = step(*args)
        calls += 1
        if calls == stop:
            jax.block_until_ready(metrics)
            _end(folder, start, stop)
        return state, metrics

    try:
        yield traced
    finally:
        if start < calls < stop:
            _end(folder, start, calls)
        elif calls <= start:
            log.warning(
                "--profile=%d:%d: nothing was traced, for the run took %d steps.", *window, calls
            )


def _end(folder: Path, start: int, stop: int) -> None:
    jax.profiler.stop_trace()
    log.info("traced steps %d to %d into %s; view them with xprof --logdir.", start, stop, folder)
