"""`vitswin train --minutes`: what does not go together, and runs within a time, whole."""

import json
import time

import pytest

from vitswin_jax.report.runs import read_metrics
from vitswin_jax.train.run.recipe import read_recipe


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--base=x"], "error: --base=x needs --minutes; without --minutes, use --init-from x."),
        (["--minutes=0"], "error: --minutes=0 must be above 0, such as 10."),
        (["--minutes=3", "--epochs=2"], "error: optim.epochs: --minutes sets the run's length"),
        (["--minutes=3", "--optim.total_steps=2"], "error: optim.total_steps: --minutes sets"),
        (["--minutes=3", "--base=x", "--init-from=y"], "error: --base and --init-from name"),
        (["--minutes=3", "--num-hosts=2"], "error: --minutes plans for one host"),
        (["--minutes=3", "--minuets=4"], "--minutes"),
    ],
)
def test_what_does_not_go_together_is_one_line(vitswin, tmp_path, words, line):
    status, _, err = vitswin("train", "digits", f"--workdir={tmp_path}", *words)
    assert status == 1
    assert line in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_run_without_minutes_is_not_taken_over(vitswin, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    status, _, err = vitswin("train", "digits", "--minutes=3", f"--workdir={tmp_path}")
    assert status == 1
    assert "has a run that began without --minutes" in err


TINY = ("--run.eval_epochs=5", "--model.depth=2", "--model.embed_dim=32", "--model.num_heads=2")


@pytest.mark.long
def test_a_whole_run_keeps_its_time_and_its_recipe_repeats_it(vitswin, tmp_path):
    """A second command with more minutes extends the run."""
    begin = time.monotonic()
    words = ("train", "digits", f"--workdir={tmp_path / 'a'}", *TINY)
    status, out, err = vitswin(*words, "--minutes=1")
    spent = time.monotonic() - begin
    assert status == 0, err
    assert "test accuracy" in out
    assert 0.75 * 60 < spent < 1.1 * 60
    recipe = read_recipe(str(tmp_path / "a" / "recipe.py"))
    saved = json.loads((tmp_path / "a" / "config.json").read_text())
    assert saved["optim"]["epochs"] == recipe.optim.epochs
    assert saved["model"]["depth"] == recipe.model.depth == 2
    assert (tmp_path / "a" / "report.html").exists()
    steps = read_metrics(tmp_path / "a")["test/accuracy"][0][-1]
    status, out, err = vitswin(*words, "--minutes=1.4")
    assert status == 0, err
    assert read_metrics(tmp_path / "a")["test/accuracy"][0][-1] > steps


@pytest.mark.long
def test_weights_are_fine_tuned_within_a_time(vitswin, tmp_path, workdir):
    status, _, err = vitswin(
        "train",
        "digits_parity",
        "--minutes=0.8",
        f"--base={workdir}",
        f"--workdir={tmp_path / 'b'}",
    )
    assert status == 0, err
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["init_from"] == str(workdir)
    assert config["model"]["num_classes"] is None  # as many as the data has
    assert (tmp_path / "b" / "start.json").exists()
