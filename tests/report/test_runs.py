"""Two runs side by side: at the last step both were evaluated, and only on the same split."""

import json

import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.report.runs import check_comparable, compare

DATA = {"dataset": "digits", "test_split": "test", "holdout": 0.25}


def write(folder, accuracies, *, init_from=None, **data):
    """The folder of a run with a test accuracy, and twice that as its loss, at some steps."""
    folder.mkdir()
    config = {"data": DATA | data, "seed": 0, "init_from": init_from}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"step": s, "test/accuracy": a, "test/loss": 2 * a} for s, a in accuracies.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_runs_of_other_lengths_are_compared_at_the_last_common_step(tmp_path):
    ours = write(tmp_path / "ours", {10: 0.5, 20: 0.6, 25: 0.7}, init_from="weights.npz")
    theirs = write(tmp_path / "theirs", {10: 0.3, 20: 0.4, 30: 0.9})
    comparison = compare(ours, theirs)
    assert comparison.step == 20
    told = [(run.name, run.started_from, run.accuracy, run.loss) for run in comparison.runs]
    assert told == [("ours", "weights.npz", 0.6, 1.2), ("theirs", "chance", 0.4, 0.8)]
    assert comparison.accuracies[1] == ((10, 20, 30), (0.3, 0.4, 0.9))


def test_runs_without_a_common_step_are_not_compared(tmp_path):
    comparison = compare(write(tmp_path / "a", {1: 0.1}), write(tmp_path / "b", {2: 0.2}))
    assert comparison.step is None and comparison.runs == ()


def test_a_run_tested_on_other_data_is_refused(tmp_path):
    other = write(tmp_path / "other", {1: 0.1}, dataset="flowers", holdout=0.5)
    config = {"data": DATA, "seed": 0}
    with pytest.raises(UserError, match="was tested on other data") as error:
        check_comparable(config, other)
    assert "data.dataset is 'flowers' there and 'digits' here" in str(error.value)
    assert "data.holdout is 0.5 there and 0.25 here" in str(error.value)
    check_comparable(config, write(tmp_path / "same", {1: 0.1}))
    with pytest.raises(UserError, match=r"has no evaluations in a metrics.jsonl"):
        check_comparable(config, tmp_path)
