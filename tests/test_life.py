"""The life of a run: it is used before its end, extended, shortened, ended early, and resumed."""

import json
import logging
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from vitswin_jax import load_metadata, load_pretrained
from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep.workdir import STOP
from vitswin_jax.trainer import train_and_evaluate

STEPS = 8
EACH = {"run.eval_epochs": 0.0, "run.eval_steps": 2, "run.keep_checkpoints": 9}
EACH |= {"run.checkpoint_epochs": 0.0, "run.checkpoint_steps": 2}


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, logger="vitswin_jax")
    return caplog


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def accuracies_of(workdir):
    return {r["step"]: r["test/accuracy"] for r in rows_of(workdir) if "test/accuracy" in r}


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def run(make_config, tmp_path_factory):
    """(workdir, what it had at each evaluation): a run of four evaluations."""
    workdir, seen = tmp_path_factory.mktemp("life") / "run", {}

    class Look(logging.Handler):
        def emit(self, record):
            pass

    import vitswin_jax.results as results

    written = results.Results._write

    def write(self, params, tested):
        written(self, params, tested)
        metadata, variables = load_metadata(workdir), load_pretrained(workdir)[1]
        page = (workdir / "report.html").read_text()
        seen[tested.step] = metadata, variables, page

    results.Results._write = write
    try:
        train_and_evaluate(make_config(**EACH), workdir)
    finally:
        results.Results._write = written
    return workdir, seen


def test_each_evaluation_leaves_weights_and_a_report(run):
    workdir, seen = run
    accuracies = accuracies_of(workdir)
    assert list(seen) == list(accuracies) == [2, 4, 6, 8]
    for step, (metadata, _, page) in seen.items():
        assert metadata.provenance["step"] == step
        assert metadata.metrics["test/accuracy"] == accuracies[step]
        assert f"{100 * accuracies[step]:.1f} %" in page
    best = max(accuracies, key=lambda step: (accuracies[step], step))
    assert load_metadata(f"{workdir}@best").provenance["step"] == best
    assert_same(load_pretrained(f"{workdir}@best")[1], seen[best][1])


def test_each_step_that_is_kept_is_weights(run):
    """Of a checkpoint, of which the same file was written at its evaluation."""
    workdir, seen = run
    for step, (metadata, variables, _) in seen.items():
        opened = load_metadata(f"{workdir}@{step}")
        assert (opened.fields, opened.class_names) == (metadata.fields, metadata.class_names)
        assert opened.provenance == metadata.provenance and opened.metrics == metadata.metrics
        assert_same(load_pretrained(f"{workdir}@{step}")[1], variables)
    with pytest.raises(UserError, match=r"run@5: the run has no such weights; it has best, 8, 6, 4"):
        load_pretrained(f"{workdir}@5")
    with pytest.raises(UserError, match=r"run@worst: the run has no such weights; it has best"):
        load_pretrained(f"{workdir}@worst")
