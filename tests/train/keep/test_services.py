"""Loggers of other projects, by the real libraries where these are installed; none needs a network.

What was logged is read back by each project's own reader.
"""

import importlib.util
import json
import os
import struct
import sys
import types

import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep import services
from vitswin_jax.train.keep.services import Logged, check_loggers, make_loggers, names_of
from vitswin_jax.trainer import train_and_evaluate

FIRST = [(2, {"train/loss": 1.5, "lr": 0.1}), (4, {"train/loss": 1.25, "lr": 0.2})]
LATER = [(6, {"train/loss": 1.0, "test/accuracy": 0.5})]


@pytest.fixture
def log_rows(tmp_path, caplog):
    """Logs rows of a run, from a step on, as a run and its resumption do."""
    workdir = tmp_path / "runs" / "flowers"
    workdir.mkdir(parents=True)

    def log_rows(name, rows, *, start_step=0):
        config = {"optim.peak_lr": 0.001, "model.name": "vit", "optim.milestone_steps": (1, 2)}
        made = make_loggers((name,), Logged(workdir, start_step, config, "tests"))
        for step, numbers in rows:
            made[0].log(step, numbers)
        made[0].close()
        assert not caplog.messages
        return json.loads((workdir / "loggers.json").read_text())[name]

    return log_rows


def needs(name):
    """Skips a test where a package is not installed."""
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed")


lenient = pytest.mark.filterwarnings("ignore")  # of what other projects' libraries warn


def wandb_records(data, *, block=32_768):
    """Gives the records of an offline run's file: LevelDB's log format after 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # FULL, LAST
            yield whole
            whole = b""


def wandb_runs(workdir):
    """The (step, numbers), the config and the names of the runs that W&B logged offline."""
    from wandb.proto import wandb_internal_pb2

    rows, configs, projects = [], {}, set()
    for file in sorted((workdir / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            row = {key: json.loads(value) for key, value in items.items()}
            if row:
                numbers = {key: value for key, value in row.items() if key[0] != "_"}
                rows.append((row["_step"], numbers))
            if record.HasField("run"):
                projects.add((record.run.project, record.run.run_id, record.run.display_name))
                configs |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
    return rows, configs, projects


@needs("wandb")
@lenient
def test_wandb_logs_offline_and_a_resumed_run_has_the_same_id(log_rows, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_loggers(("wandb",))
    run_id = log_rows("wandb", FIRST)
    assert log_rows("wandb", LATER, start_step=4) == run_id
    rows, configs, projects = wandb_runs(tmp_path / "runs" / "flowers")
    assert projects == {("tests", run_id, "flowers")}
    assert configs["optim.peak_lr"] == 0.001
    assert rows == [*FIRST, *LATER]


@needs("wandb")
@lenient
@pytest.mark.long
def test_a_run_and_its_longer_self_are_one_run_of_wandb(make_config, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for epochs in (0.4, 0.6):
        config = make_config(loggers=("wandb",), project="day", **{"optim.epochs": epochs})
        train_and_evaluate(config, tmp_path / "run")
    rows, configs, projects = wandb_runs(tmp_path / "run")
    assert len(projects) == 1 and {(p, name) for p, _, name in projects} == {("day", "run")}
    assert configs["model.name"] == "vit"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    kept = {}
    for row in map(json.loads, lines):  # W&B merges the rows of a step
        kept.setdefault(row["step"], {}).update(row)
    assert [step for step, _ in rows] == sorted({step for step, _ in rows}) == sorted(kept)
    assert rows[-1][1]["test/accuracy"] == kept[rows[-1][0]]["test/accuracy"]


@needs("mlflow")
@lenient
def test_mlflow_logs_to_a_file_and_a_resumed_run_is_the_same(log_rows, monkeypatch, tmp_path):
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    run_id = log_rows("mlflow", FIRST)
    assert log_rows("mlflow", LATER, start_step=4) == run_id
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("flowers", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "tests"
    assert run.data.params["optim.peak_lr"] == "0.001"
    loss = client.get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value) for m in loss] == [(2, 1.5), (4, 1.25), (6, 1.0)]
    assert run.data.metrics["test/accuracy"] == 0.5


@needs("trackio")
@lenient
def test_trackio_logs_on_this_machine_and_a_resumed_run_is_the_same(
    log_rows, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        del sys.modules[name]  # it reads the folder's name when it is imported
    run_name = log_rows("trackio", FIRST)
    assert log_rows("trackio", LATER, start_step=4) == run_name
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("tests", run_name)
    kept = [
        (row["step"], {k: row[k] for k in row if k not in ("step", "timestamp")}) for row in rows
    ]
    assert kept == [*FIRST, *LATER]
    assert capsys.readouterr().out == ""


def test_names_are_one_text_or_several():
    assert names_of(("tensorboard,wandb", "wandb", " mlflow")) == ["tensorboard", "wandb", "mlflow"]
    assert names_of(()) == []
    with pytest.raises(UserError, match=r"loggers='wandbb' must be one of .*did you mean 'wandb'"):
        names_of(("wandbb",))


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "trackio" else found(name)
    )
    line = r"loggers: trackio is not installed; run `pip install 'vitswin_jax\[trackio\]'`\."
    with pytest.raises(UserError, match=line):
        check_loggers(("tensorboard", "trackio"))
    check_loggers(("tensorboard",))


@pytest.mark.parametrize(
    ("mode", "key", "fine"),
    [("online", False, False), ("online", True, True), ("offline", False, True)],
)
def test_wandb_without_a_key_stops_before_the_run(mode, key, fine, monkeypatch):
    """A stand-in for the library: the real one asks a server whether a key is good."""
    settings = types.SimpleNamespace(mode=mode)
    wandb = types.ModuleType("wandb")
    wandb.setup = lambda: types.SimpleNamespace(settings=settings)
    wandb.login = lambda prompt: key
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    if fine:
        check_loggers(("wandb",))
        return
    with pytest.raises(UserError, match="W&B has no key; run `wandb login`"):
        check_loggers(("wandb",))


def test_extras_have_the_names_of_the_services(request):
    import tomllib

    text = (request.config.rootpath / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    assert services.SERVICES.keys() <= extras.keys()
    assert all(extras[name][0].startswith(name) for name in services.SERVICES)


def test_objects_of_a_user_are_detached_too(tmp_path):
    rows = []

    class Mine:
        def log(self, step, numbers):
            rows.append((step, os.getpid()))

        def close(self):
            rows.append("closed")

    (own,) = make_loggers((), Logged(tmp_path, 0, {}, None), [Mine()])
    own.log(3, {})
    own.close()
    assert rows == [(3, os.getpid()), "closed"]


def test_a_new_logger_is_one_class_and_one_row(tmp_path, monkeypatch):
    rows = []

    class Ours:
        def __init__(self, logged):
            self.log = lambda step, numbers: rows.append((logged.project, step, numbers))
            self.close = lambda: rows.append("closed")

    monkeypatch.setattr(services, "SERVICES", services.SERVICES | {"ours": Ours})
    assert names_of(("ours",)) == ["ours"]
    (logger,) = make_loggers(("ours",), Logged(tmp_path, 0, {}, "a run"))
    logger.log(2, {"lr": 0.5})
    logger.close()
    assert rows == [("a run", 2, {"lr": 0.5}), "closed"]
