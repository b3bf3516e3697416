"""The life of a run: it is used before its end, extended, shortened, ended early, and resumed."""

import importlib
import json
import logging
import re
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from fixtures_train import ROOT, without_times
from PIL import Image

from vitswin_jax import load_metadata, load_pretrained, save_pretrained
from vitswin_jax.cli import main
from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.types import UserError
from vitswin_jax.results import Results
from vitswin_jax.train.hosts.signals import StoppedError
from vitswin_jax.train.keep.callbacks import Callback
from vitswin_jax.train.keep.lock import locked
from vitswin_jax.train.keep.loggers import Progress
from vitswin_jax.train.keep.workdir import MAY_CHANGE, STOP, as_written_now, flatten
from vitswin_jax.train.run.announce import facts_of_start
from vitswin_jax.train.run.own import Own
from vitswin_jax.train.run.plan import make_plan
from vitswin_jax.train.run.prepare import prepare
from vitswin_jax.trainer import train_and_evaluate
from vitswin_jax.weights.open import open_pretrained

STEPS = 8
EACH = {"run.eval_epochs": 0.0, "run.eval_steps": 2, "run.keep_checkpoints": 9}
EACH |= {"run.checkpoint_epochs": 0.0, "run.checkpoint_steps": 2}


@pytest.fixture
def logged(caplog):
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

    written = Results._write

    def write(self, params, tested):
        written(self, params, tested)
        metadata, variables = load_metadata(workdir), load_pretrained(workdir)[1]
        page = (workdir / "report.html").read_text()
        seen[tested.step] = metadata, variables, page

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Results, "_write", write)
        train_and_evaluate(make_config(**EACH), workdir)
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
    with pytest.raises(
        UserError, match=r"run@5: the run has no such weights; it has best, 8, 6, 4"
    ):
        load_pretrained(f"{workdir}@5")
    with pytest.raises(UserError, match=r"run@worst: the run has no such weights; it has best"):
        load_pretrained(f"{workdir}@worst")


class Terminated(Callback):
    """Asks for a stop after the fourth step, as a scheduler does."""

    def on_step(self, step, metrics):
        if step == 4:
            signal.raise_signal(signal.SIGTERM)


class Broken(Callback):
    """Breaks the run off between the row of an evaluation and the checkpoint that has it."""

    def on_evaluation(self, step, numbers):
        raise RuntimeError("broken off")


@pytest.mark.long
def test_an_evaluation_that_a_stop_left_out_has_one_row(make_config, run, tmp_path):
    config, workdir = make_config(**EACH), tmp_path / "run"
    with pytest.raises(StoppedError, match="at step 4 of 8"):
        train_and_evaluate(config, workdir, own=Own(callbacks=[Terminated()]))
    assert list(accuracies_of(workdir)) == [2]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken off"):
            train_and_evaluate(config, workdir, own=Own(callbacks=[Broken()]))
        assert list(accuracies_of(workdir)) == [2, 4]
    train_and_evaluate(config, workdir)
    assert without_times(rows_of(workdir)) == without_times(rows_of(run[0]))


LENGTHENED = {"optim.epochs": 0.8}


@pytest.mark.long
def test_a_run_is_extended_and_the_schedule_recomputed(make_config, run, logged, tmp_path):
    """Its next steps are those of a run that had this length when it was at that step."""
    workdir = copied(run, tmp_path)
    train_and_evaluate(make_config(**EACH | LENGTHENED), workdir)
    (line,) = [line for line in logged.messages if "schedule" in line]
    assert line.startswith(
        "steps: the run now has 17 steps, before 8; the learning rate schedule is recomputed"
    )
    rates = {row["step"]: row["lr"] for row in rows_of(workdir) if "lr" in row}
    assert rates[8] < rates[10] > rates[17]
    assert load_metadata(workdir).provenance["step"] == 17
    assert load_metadata(f"{workdir}@8").provenance["step"] == 8


@pytest.mark.long
def test_a_run_is_shortened_but_not_below_its_step(make_config, run, tmp_path):
    workdir = copied(run, tmp_path)
    before = (workdir / "config.json").read_text()
    with pytest.raises(UserError, match="has taken 8 steps, but this config ends it after 4; "):
        train_and_evaluate(make_config(**EACH | {"optim.epochs": 0.2}), workdir)
    assert (workdir / "config.json").read_text() == before
    shutil.rmtree(workdir / "checkpoints" / "8")
    train_and_evaluate(make_config(**EACH | {"optim.epochs": 0.33}), workdir)
    assert load_metadata(workdir).provenance["step"] == 7
    assert [row["step"] for row in rows_of(workdir)][-1] == 7


def test_what_may_not_change_is_refused_with_the_way_out(make_config, run):
    workdir, _ = run
    changed = {"model.depth": 1, "notes": "a longer one", "data.workers": 1}
    with pytest.raises(
        UserError, match=r"another config: model.depth was 2 and is 1\. Only"
    ) as error:
        train_and_evaluate(make_config(**EACH | changed), workdir)
    assert f"--init-from {workdir} with another --workdir" in str(error.value)


def copied(run, folder):
    return Path(shutil.copytree(run[0], folder / "run"))


@pytest.mark.long
def test_patience_ends_a_run_with_results_and_more_of_it_resumes(make_config, logged, tmp_path):
    """With a rate of 0 no evaluation is better than the first."""
    still = EACH | {"optim.peak_lr": 0.0, "run.patience": 2}
    result = train_and_evaluate(make_config(**still), tmp_path)
    assert list(accuracies_of(tmp_path)) == [2, 4, 6]
    assert load_metadata(tmp_path).provenance["step"] == 6
    assert any(
        line.startswith("steps: ends early, after 6 of 8: the 2") for line in logged.messages
    )
    again = train_and_evaluate(make_config(**still), tmp_path)
    assert str(again) == str(result) and list(accuracies_of(tmp_path)) == [2, 4, 6]
    train_and_evaluate(make_config(**still | {"run.patience": 3}), tmp_path)
    assert list(accuracies_of(tmp_path)) == [2, 4, 6, 8]


@pytest.mark.long
def test_a_file_in_the_workdir_ends_a_run_with_results(make_config, run, tmp_path, monkeypatch):
    """And the same command resumes it to the end of the run that nothing ended."""
    monkeypatch.setattr("vitswin_jax.train.keep.request._PERIOD", 0.0)
    advance, told_at = Progress.advance, 3

    def ask(self, step):
        advance(self, step)
        if step == told_at:
            (tmp_path / STOP).touch()

    monkeypatch.setattr(Progress, "advance", ask)
    train_and_evaluate(make_config(**EACH), tmp_path)
    assert not (tmp_path / STOP).exists()
    assert load_metadata(tmp_path).provenance["step"] == 3
    assert list(accuracies_of(tmp_path)) == [2, 3]
    monkeypatch.setattr(Progress, "advance", advance)
    (tmp_path / STOP).touch()  # of a run before
    train_and_evaluate(make_config(**EACH), tmp_path)
    assert_same(load_pretrained(tmp_path)[1], run[1][STEPS][1])


def test_vitswin_stop_needs_a_run_that_trains(run, tmp_path, capsys):
    workdir = copied(run, tmp_path)
    assert main(["stop", str(workdir)]) == 1
    assert "no run trains there now" in capsys.readouterr().err
    assert main(["stop", str(tmp_path)]) == 1
    assert "is no workdir of a run" in capsys.readouterr().err
    with locked(workdir):
        assert main(["stop", str(workdir)]) == 0
    assert (workdir / STOP).exists()


@pytest.mark.long
@pytest.mark.parametrize("changes", [{"lora.rank": 2, "ema.decay": 0.5}, {"model.scan": True}])
def test_a_checkpoint_gives_the_weights_that_an_evaluation_writes(make_config, tmp_path, changes):
    """Adapters merged, the average where it is evaluated, scanned blocks one by one."""
    config = make_config(**EACH | {"optim.epochs": 0.2} | changes)
    train_and_evaluate(config, tmp_path)
    opened = load_pretrained(tmp_path / "checkpoints" / "4")[1]
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, atol=1e-6),
        load_pretrained(tmp_path)[1],
        opened,
    )


def test_a_damaged_checkpoint_is_one_line(run, tmp_path):
    workdir = copied(run, tmp_path)
    for path in (workdir / "checkpoints" / "4" / "params").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 8
            path.write_bytes(data)
    with pytest.raises(UserError, match=r"checkpoints/4: is damaged: .*; take another step\.$"):
        load_pretrained(f"{workdir}@4")


def test_a_newer_file_in_the_place_of_one_that_is_read_changes_nothing(run, tmp_path):
    """A run writes its weights while a command reads those of the evaluation before."""
    workdir = copied(run, tmp_path)
    before = load_pretrained(workdir)[1]
    opened = open_pretrained(workdir)
    with replacing(workdir / "model.safetensors") as temporary:
        shutil.copyfile(workdir / "best.safetensors", temporary)
        save_pretrained(temporary, opened.model, jax.tree.map(lambda x: x + 1, before))
    assert_same(opened.variables, before)


@pytest.mark.long
def test_a_run_says_what_it_reads(make_config, run, logged, tmp_path):
    workdir = copied(run, tmp_path)
    shutil.rmtree(workdir / "checkpoints" / "8")
    logged.clear()
    train_and_evaluate(make_config(**EACH), workdir)
    begins = ("trains on", "steps:", "resumed:", "compil")
    said = [line for line in logged.messages if line.startswith(begins)]
    assert said[0] == (
        "trains on digits:train: 10 classes, 1,347 images; tested on digits:test: 450 images."
    )
    assert said[1].startswith("trains on 8 devices (cpu), mesh data 8, in float32.")
    assert said[2] == "steps: 8 in all, 21.05 an epoch of batches of 64 images (0.38 epochs)."
    assert said[3] == "resumed: after step 6 (epoch 0.29)."
    assert said[4] == "compiling the train step."
    assert said[5].startswith("compiled the train step in ")


def test_the_report_says_what_the_run_read_and_how_fast_it_was(run):
    page = run[1][STEPS][2]
    head = page[: page.index("</header>")]
    facts = dict(
        re.findall('<tr><th scope="row">([^<]*)</th><td class="text">([^<]*)</td></tr>', head)
    )
    assert facts["data"] == (
        "digits:train: 10 classes, 1,347 images; tested on digits:test: 450 images"
    )
    assert facts["devices"] == "8 devices (cpu), mesh data 8, in float32"
    assert "optim.epochs=0.4, " in facts["changed keys"] and "mesh" not in facts["changed keys"]
    assert re.fullmatch(r"0:0\d:\d\d", facts["duration"])
    assert re.fullmatch(r"[\d,]+ images/s \(median\)", facts["speed"])
    assert re.match(r"\d+\.\d %: compile [\d:.]+( s)?, ", facts["goodput"])
    assert facts.keys() >= {"date", "versions"}


def test_a_run_on_a_folder_says_which_files_it_leaves_out(folder_of_noise, make_config, tmp_path):
    for name in ("notes.txt", "a.jpg", "rose/b.md", "rose/c.CSV", "rose/.hidden"):
        (folder_of_noise / name).write_text("")
    here = {"data.dataset": str(folder_of_noise), "data.batch_size": 8, "optim.epochs": 9.0}
    config = make_config(**here)
    facts = dict(facts_of_start(prepare(config), step=0))
    assert facts["left out"] == "1 file (in no class folder), 3 files (no images: .csv, .md, .txt)"
    assert facts["data"].startswith("flowers:train: 2 classes, 12 images; tested on ")


def test_files_left_out_are_counted_in_the_folders_of_both_splits(
    folder_of_noise, make_config, tmp_path
):
    for split, names in (("train", ("x.txt",)), ("test", ("y.txt", "z.txt"))):
        shutil.copytree(folder_of_noise, tmp_path / "parted" / split)
        for name in names:
            (tmp_path / "parted" / split / "rose" / name).write_text("")
    here = {"data.dataset": str(tmp_path / "parted"), "data.batch_size": 8, "optim.epochs": 9.0}
    facts = dict(facts_of_start(prepare(make_config(**here)), step=0))
    assert facts["left out"] == "3 files (no images: .txt)"


@pytest.fixture
def folder_of_noise(tmp_path):
    """A folder of two classes of eight small images."""
    rng = np.random.default_rng(0)
    for name in ("rose", "tulip"):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for i in range(8):
            image = Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8))
            image.save(tmp_path / "flowers" / name / f"{i}.png")
    return tmp_path / "flowers"


@pytest.mark.long
def test_every_command_takes_a_step_of_a_run(run, make_config, folder_of_noise, tmp_path, capsys):
    weights, image = f"{run[0]}@4", str(folder_of_noise / "rose" / "0.png")
    for command in (
        ["predict", weights, image, "--features", str(tmp_path / "f.npz"), "--json"],
        ["evaluate", weights, "--json"],
        ["explain", weights, image, "--out", str(tmp_path / "explain"), "--only", "rollout"],
        ["export", weights, str(tmp_path / "x.onnx")],
        ["convert", weights, str(tmp_path / "x.safetensors"), "--to", "timm", "--verify"],
    ):
        assert main(command) == 0, (command, capsys.readouterr())
    assert (run[0] / "evaluation-4-digits-test.html").exists()
    config = make_config(**EACH | {"init_from": weights, "optim.epochs": 0.2})
    train_and_evaluate(config, tmp_path / "run")
    train_and_evaluate(config, tmp_path / "run")
    origin = load_metadata(tmp_path / "run").provenance["init_from"]
    assert origin["init_from"] == weights and len(origin["sha256"]) == 64


def as_written_by_the_oldest_version(workdir):
    """Gives a run the config.json that the first version with today's sections wrote for it."""
    old = json.loads((ROOT / "tests" / "goldens" / "oldest_config.json").read_text())
    for key, value in EACH.items():
        section, name = key.split(".")
        if name in old[section]:
            old[section][name] = value
    (workdir / "config.json").write_text(json.dumps(old))
    return old


@pytest.mark.long
def test_a_run_of_an_older_version_resumes(make_config, run, tmp_path):
    """Keys that it did not have mean what runs did then; the rest of it is the unbroken run's."""
    workdir = copied(run, tmp_path)
    shutil.rmtree(workdir / "checkpoints" / "8")
    old = as_written_by_the_oldest_version(workdir)
    assert "quantize" not in old and "pretrain" not in old
    with pytest.raises(UserError, match="quantize was none and is fp8"):
        train_and_evaluate(make_config(**EACH | {"quantize": "fp8"}), workdir)
    train_and_evaluate(make_config(**EACH), workdir)
    assert_same(load_pretrained(workdir)[1], run[1][STEPS][1])


def test_every_key_that_was_added_has_its_meaning_before(make_config, tmp_path):
    old_config = as_written_by_the_oldest_version(tmp_path)
    old = flatten(old_config)
    now = flatten(make_config(**EACH).to_dict())
    added = now.keys() - as_written_now(old_config, now).keys()
    assert added <= set(MAY_CHANGE), "add a row to ADDED in train/keep/workdir.py"
    assert old.keys() <= now.keys()  # or what was renamed needs its old name


@pytest.mark.parametrize("recipe", ["digits", "folder"])
def test_a_shorter_run_shortens_the_warmup_of_its_recipe(recipe, logged):
    """And not one that was set by hand."""
    config = importlib.import_module(f"configs.{recipe}").get_config()
    config.optim.epochs = 3.0
    config.optim.warmup_epochs *= 1.0  # by hand
    counts = {"num_examples": 1000, "batch_size": 100}
    plan = make_plan(config.optim.to_dict(), config.run.to_dict(), **counts)
    assert plan.warmup_steps == 10 * config.optim.warmup_epochs and not logged.messages
    config = importlib.import_module(f"configs.{recipe}").get_config()
    config.optim.epochs = 3.0
    plan = make_plan(config.optim.to_dict(), config.run.to_dict(), **counts)
    assert plan.warmup_steps == 8
    assert "warmup of" in logged.messages[0] and "shortened to 8, a quarter" in logged.messages[0]
