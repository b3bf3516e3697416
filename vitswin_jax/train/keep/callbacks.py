"""Callbacks: methods of a Python user that a run calls at steps, evaluations and its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax import Array

from vitswin_jax.core.types import UserError

METHODS = ("on_step", "on_evaluation", "on_end")


class Callback:
    """The methods that `vitswin_jax.fit` calls; a class of your own overrides those it needs.

    If a method returns True, the run ends after at most one more step, with its results. An
    exception of a method ends the run and reaches the caller of `fit`. If a run has several hosts,
    each host calls the methods, and the answer of the first host counts.

    >>> class Enough(Callback):
    ...     def on_evaluation(self, step, numbers):
    ...         return numbers["test/accuracy"] >= 0.99
    >>> Enough().on_evaluation(100, {"test/accuracy": 0.995})
    True
    """

    def on_step(self, step: int, metrics: Mapping[str, Array]) -> bool | None:
        """Is called after each step, counted from 1.

        `metrics` has `loss`, `grad_norm` (before clipping) and `accuracy` (in [0, 1]) of the batch.
        They are arrays on the device: `float(metrics["loss"])` waits for the step.
        """

    def on_evaluation(self, step: int, numbers: Mapping[str, float]) -> bool | None:
        """Is called after each evaluation of the test split.

        `numbers` has `test/loss`, `test/accuracy` (in [0, 1]) and your metrics as `test/NAME`.
        """

    def on_end(self, fitted: Any) -> None:
        """Is called once at the end, with the `Fitted` that `fit` returns."""


class Callbacks:
    """The callbacks of a run; a function stands for `on_evaluation`.

    Raises UserError for an object that has none of the methods.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self.asks_to_end = False
        """Whether a callback has asked for the run's end."""
        self._called: dict[str, list[Callable[..., Any]]] = {name: [] for name in METHODS}
        for each in callbacks:
            if isinstance(each, type):
                raise UserError(f"callbacks: {each.__name__} is a class; pass {each.__name__}().")
            methods = {name: getattr(each, name) for name in METHODS if hasattr(each, name)}
            if not methods and callable(each):
                methods = {"on_evaluation": each}
            if not methods:
                kind = type(each).__name__
                raise UserError(f"callbacks: {kind} has no method {', '.join(METHODS)}.")
            for name, method in methods.items():
                self._called[name].append(method)

    def step(self, step: int, metrics: Mapping[str, Array]) -> None:
        """Calls the `on_step` methods."""
        self._call("on_step", step, metrics)

    def evaluation(self, step: int, numbers: Mapping[str, float]) -> None:
        """Calls the `on_evaluation` methods."""
        self._call("on_evaluation", step, numbers)

    def end(self, fitted: Any) -> None:
        """Calls the `on_end` methods."""
        self._call("on_end", fitted)

    def _call(self, name: str, *arguments: Any) -> None:
        for method in self._called[name]:
            answer = method(*arguments)
            if isinstance(answer, bool | np.bool_) and answer:
                self.asks_to_end = True
