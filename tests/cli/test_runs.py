"""`vitswin runs`: a table, JSON, a page, and the state of each run."""

import json

import pytest

from vitswin_jax.train.keep.lock import locked


@pytest.fixture
def runs(tmp_path):
    for name, lr in (("first", 0.5), ("second", 0.25)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = {
            "data": {"dataset": "flowers"},
            "model": {"name": "vit"},
            "optim": {"epochs": 1.0, "peak_lr": lr},
        }
        row = {"step": 4, "epoch": 1.0, "test/accuracy": lr, "test/loss": 1.0}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


def test_a_table_and_a_page(vitswin, runs):
    status, out, _ = vitswin("runs", str(runs))
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split("  ")[0] == "run"
    assert lines[1].split()[:3] == ["first", "done", "50.0"]
    assert "optim.peak_lr=0.25" in lines[2]
    assert f"left out: {runs}/notes: is no run" in out
    assert lines[-1] == f"page: {runs}/runs.html"
    assert "second" in (runs / "runs.html").read_text()


def test_json_writes_no_page_unless_it_is_named(vitswin, runs, tmp_path):
    status, out, _ = vitswin("runs", str(runs), "--json")
    told = json.loads(out)
    assert status == 0
    assert [run["name"] for run in told["runs"]] == ["first", "second"]
    assert told["runs"][1]["differs"] == {"optim.peak_lr": 0.25}
    assert len(told["left_out"]) == 1
    assert not (runs / "runs.html").exists()
    vitswin("runs", str(runs), "--json", "--page", str(tmp_path / "x.html"))
    assert (tmp_path / "x.html").exists()


def test_a_run_that_trains_is_running(vitswin, runs):
    with locked(runs / "second"):
        told = json.loads(vitswin("runs", str(runs), "--json")[1])
    assert [run["state"] for run in told["runs"]] == ["done", "running"]
    (runs / "first" / ".lock").touch()  # as a run leaves it that has ended
    told = json.loads(vitswin("runs", str(runs), "--json")[1])
    assert [run["state"] for run in told["runs"]] == ["done", "done"]


def test_a_folder_without_runs_is_a_line(vitswin, tmp_path):
    status, _, err = vitswin("runs", str(tmp_path))
    assert status == 1
    assert err.startswith(f"error: {tmp_path}: this folder and those below it contain no run")
    assert len(err.splitlines()) == 1
