"""Any number of runs: their numbers, their states, what differs, and folders that are none."""

import json
import re

import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.report.overview import read_runs, rows_of, write_overview


def write_run(folder, accuracies, *, epochs=4.0, lr=1e-3, **more):
    """The folder of a run of 10 steps an epoch, tested at some steps."""
    folder.mkdir(parents=True)
    config = {
        "data": {"dataset": "flowers", "batch_size": 8},
        "model": {"name": "vit"},
        "optim": {"epochs": epochs, "peak_lr": lr},
    }
    rows = [{"step": 5, "epoch": 0.5, "lr": lr, "images_per_second": 90.0}]
    rows += [
        {"step": step, "epoch": step / 10, "test/accuracy": accuracy, "test/loss": 1 - accuracy}
        for step, accuracy in accuracies.items()
    ]
    rows.append({"step": 15, "epoch": 1.5, "images_per_second": 110.0})
    (folder / "config.json").write_text(json.dumps(config | more))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    write_run(root / "a", {10: 0.5, 40: 0.75})
    write_run(root / "sub" / "b", {10: 0.875, 20: 0.25}, lr=2e-3)
    write_run(root / "c", {20: 0.5}, epochs=8.0, lr=2e-3)
    (root / "empty").mkdir()
    (root / ".hidden").mkdir()
    (root / "cut").mkdir()
    (root / "cut" / "config.json").write_text('{"data"')
    (root / "other").mkdir()
    (root / "other" / "config.json").write_text('{"name": "something else"}')
    return root


def test_each_run_has_its_best_numbers_and_its_state(runs):
    overview = read_runs(runs, lambda path: path.name == "c")
    told = [(run.name, run.state, run.accuracy, run.loss, run.epochs) for run in overview.runs]
    assert told == [
        ("a", "done", 0.75, 0.25, 4.0),
        ("c", "running", 0.5, 0.5, 2.0),
        ("sub/b", "stopped", 0.875, 0.125, 2.0),
    ]
    assert {run.images_per_second for run in overview.runs} == {100.0}
    assert [run.goodput for run in overview.runs] == [None] * 3
    assert overview.differences() == {
        "optim.epochs": [4.0, 8.0, 4.0],
        "optim.peak_lr": [1e-3, 2e-3, 2e-3],
    }


def test_a_run_has_the_goodput_of_its_log_and_older_ones_have_none(runs):
    (runs / "a" / "goodput").mkdir()
    lines = ['{"step": 0, "time": 8.0, "began": 0.0, "start": 8.0, "from": 0}', '{"step": 9, "ti']
    lines.insert(1, '{"step": 40, "time": 16.0, "device": 7.0, "input": 1.0}')
    (runs / "a" / "goodput" / "host-0.jsonl").write_text("\n".join(lines))
    overview = read_runs(runs, lambda path: False)
    assert [run.goodput for run in overview.runs] == [7 / 16, None, None]
    assert dict(rows_of(overview))["goodput"] == ["43.8 %", "–", "–"]


def test_other_folders_cost_a_line(runs):
    lines = read_runs(runs, lambda path: False).others
    assert len(lines) == 3
    for name, why in (
        ("cut", "is not valid JSON"),
        ("empty", "is no run"),
        ("other", "not that of a run"),
    ):
        assert [why in line for line in lines if str(runs / name) in line] == [True]
    with pytest.raises(UserError, match="contain no run"):
        read_runs(runs / "empty", lambda path: False)
    with pytest.raises(UserError, match="no such folder"):
        read_runs(runs / "nothing", lambda path: False)


def test_a_run_is_compared_with_itself_only(runs):
    (run,) = read_runs(runs / "a", lambda path: False).runs
    assert run.name == "a"


def test_numbers_that_no_run_states_have_no_column(runs):
    for path in runs.rglob("metrics.jsonl"):
        path.write_text("")
    columns = dict(rows_of(read_runs(runs, lambda path: False)))
    assert columns == {"run": ["a", "c", "sub/b"], "state": ["stopped"] * 3}


def test_lengths_in_steps_and_examples(tmp_path):
    for name, optim in (
        ("steps", {"total_steps": 20}),
        ("examples", {"examples": 160}),
        ("longer", {"total_steps": 21}),
    ):
        write_run(tmp_path / name, {20: 0.5}, optim=optim)
    states = {run.name: run.state for run in read_runs(tmp_path, lambda path: False).runs}
    assert states == {"steps": "done", "examples": "done", "longer": "stopped"}


def test_the_page_shows_all_and_escapes_names(runs):
    (runs / "a").rename(runs / "<b>a")
    overview = read_runs(runs, lambda path: False)
    page = write_overview(runs / "runs.html", overview, folder="runs").read_text()
    assert "<b>" not in page and "&lt;b&gt;a" in page
    assert page.count('class="swatch"') == 2 * len(overview.runs)
    for text in ("87.5 %", "optim.peak_lr", "0.002", "is no run", "Test accuracy"):
        assert text in page
    sources = re.findall(r'(?:src|href)="([^"]*)', page)
    assert sources and all(source.startswith("data:image/svg+xml") for source in sources)
