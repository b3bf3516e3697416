"""Loggers of other projects: W&B, MLflow and trackio; a resumed run resumes its run there.

Each is one extra of this package, and is set up as its own documentation says: by its environment
variables (WANDB_MODE=offline, MLFLOW_TRACKING_URI, TRACKIO_DIR) and its log-in.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.choices import Faults, wrong_choice
from vitswin_jax.core.json import read_json
from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep.detached import PATIENCE, Detached
from vitswin_jax.train.keep.loggers import Logger, TensorBoard
from vitswin_jax.train.keep.workdir import LOGGED

PROJECT = "vitswin_jax"
_KEEPING = threading.Lock()  # of the file of names, which each service's thread writes
_PARAMS = 100  # of a request to MLflow, at most
_IDS = {"type": "object", "additionalProperties": {"type": "string"}}


@dataclass(frozen=True)
class Logged:
    """The run that a service logs."""

    workdir: Path
    start_step: int
    config: Mapping[str, Any]
    """Values by key, "optim.peak_lr"."""
    project: str | None

    def run_id(self, service: str) -> str | None:
        """Returns a service's earlier name of this run, or None if it has none."""
        path = self.workdir / LOGGED
        return read_json(path, _IDS).get(service) if path.exists() else None

    def keep_id(self, service: str, run_id: str) -> None:
        """Keeps what a service calls this run in the workdir."""
        path = self.workdir / LOGGED
        with _KEEPING:
            ids = read_json(path, _IDS) if path.exists() else {}
            with replacing(path) as temporary:
                text = json.dumps(ids | {service: run_id}, indent=1)
                temporary.write_text(f"{text}\n", encoding="utf-8")

    def project_or(self, variable: str) -> str:
        """Returns the project: the config's, or an environment variable's, or the default."""
        return self.project or os.environ.get(variable) or PROJECT


class Wandb:
    """A run of Weights & Biases, whose files are in the workdir."""

    def __init__(self, logged: Logged) -> None:
        import wandb

        run_id = logged.run_id("wandb") or uuid.uuid4().hex[:8]
        logged.keep_id("wandb", run_id)
        self._run = wandb.init(
            project=logged.project_or("WANDB_PROJECT"),
            id=run_id,
            name=logged.workdir.resolve().name,
            dir=logged.workdir,
            config=dict(logged.config),
            resume="allow",
            reinit="create_new",  # beside a run of the caller's own
            settings=wandb.Settings(
                console="off",
                silent=True,
                finish_timeout=PATIENCE * 0.8,
                finish_timeout_raises=True,
            ),
        )

    @staticmethod
    def check() -> None:
        """Raises UserError where there is neither a key nor a mode that needs none.

        Without a key, W&B would ask for one on the terminal, in the middle of the run.
        """
        import wandb

        known = True
        # A server that is not reached raises too, and then only the log is late or lost.
        with contextlib.suppress(Exception):
            known = wandb.setup().settings.mode != "online" or wandb.login(prompt=False)
        if not known:
            raise UserError(
                "loggers: W&B has no key; run `wandb login`, or set WANDB_MODE=offline and later "
                "`wandb sync` the run."
            )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs a row; of rows that a killed run had logged, W&B keeps the first."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Uploads what is left."""
        self._run.finish()


class Mlflow:
    """A run of MLflow, in the store of MLFLOW_TRACKING_URI; the config is its parameters."""

    def __init__(self, logged: Logged) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        run_id = logged.run_id("mlflow")
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
        else:
            run_id = self._client.create_run(
                self._experiment(logged.project_or("MLFLOW_EXPERIMENT_NAME")),
                run_name=logged.workdir.resolve().name,
            ).info.run_id
            params = [Param(key, str(value)) for key, value in logged.config.items()]
            for start in range(0, len(params), _PARAMS):
                self._client.log_batch(run_id, params=params[start : start + _PARAMS])
            logged.keep_id("mlflow", run_id)
        self._run_id: str = run_id

    def _experiment(self, name: str) -> str:
        known = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if known is None else known.experiment_id

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs a row."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [Metric(key, value, now, step) for key, value in numbers.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self._run_id)


class Trackio:
    """A run of trackio, on this machine or where TRACKIO_SPACE_ID names."""

    def __init__(self, logged: Logged) -> None:
        import trackio

        name = logged.run_id("trackio")
        if name is None:  # which trackio knows a run by
            name = f"{logged.workdir.resolve().name}-{uuid.uuid4().hex[:4]}"
        logged.keep_id("trackio", name)
        with contextlib.redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=logged.project_or("TRACKIO_PROJECT"),
                name=name,
                config=dict(logged.config),
                resume="allow",
                embed=False,
            )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs a row."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Ends the run, once all is written."""
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


SERVICES: Mapping[str, Callable[[Logged], Logger]] = {
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}
"""Packages, which are extras of this one too, and their loggers."""
TENSORBOARD = "tensorboard"


def names_of(loggers: Sequence[str]) -> list[str]:
    """Returns the names in `config.loggers`, each once; one text may have several, "wandb,mlflow".

    Raises UserError, with the nearest, for an unknown name.
    """
    parts = [part.strip() for text in loggers for part in str(text).split(",")]
    names = list(dict.fromkeys(filter(None, parts)))
    faults = Faults()
    for name in names:
        faults += wrong_choice("loggers", name, (TENSORBOARD, *SERVICES))
    faults.check()
    return names


def check_loggers(loggers: Sequence[str]) -> None:
    """Raises UserError for loggers that are unknown, not installed or not logged in."""
    for name in names_of(loggers):
        if name != TENSORBOARD and importlib.util.find_spec(name) is None:
            raise UserError(
                f"loggers: {name} is not installed; run `pip install 'vitswin_jax[{name}]'`."
            )
        if (check := getattr(SERVICES.get(name), "check", None)) is not None:
            check()


def make_loggers(
    loggers: Sequence[str], logged: Logged, objects: Sequence[Logger] = ()
) -> list[Logger]:
    """Returns the loggers of `config.loggers` and `objects`, a user's own."""
    made: list[Logger] = []
    for name in names_of(loggers):
        if name == TENSORBOARD:
            made.append(TensorBoard(logged.workdir, start_step=logged.start_step))
        else:
            made.append(Detached(name, functools.partial(SERVICES[name], logged)))
    for own in objects:
        made.append(Detached(type(own).__name__, functools.partial(_itself, own)))
    return made


def _itself(own: Logger) -> Logger:
    return own
