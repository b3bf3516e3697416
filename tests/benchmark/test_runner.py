"""The runner with real workers: ourselves beside ourselves, and what it makes of times."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from vitswin_jax import cli
from vitswin_jax.benchmark import runner
from vitswin_jax.benchmark.cases import Case, write_case
from vitswin_jax.benchmark.peaks import peak_flops
from vitswin_jax.benchmark.runner import (
    Contestant,
    Worker,
    compare,
    differences,
    run_case,
    utilisation,
)
from vitswin_jax.core.types import UserError

CASE = Case("vit_tiny_patch16_224", batch_size=2, img_size=32)
OURS = Contestant("ours", "ours")
SCAN = Contestant("scan", "ours", variant={"scan": True})


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "other"),
    [
        ("inference", "--products"),
        pytest.param("train", "--variant=scan=True,accum_steps=2", marks=pytest.mark.long),
    ],
)
def test_the_same_work_is_timed_in_turns(task, other, capsys, tmp_path):
    plot = tmp_path / "times.png"
    options = ["--model=vit_tiny_patch16_224", f"--task={task}", "--batch-size=2"]
    options += ["--img-size=32", "--rounds=3", "--alone", "--json", f"--plot={plot}"]
    assert cli.main(["benchmark", *options, other]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["case"]["task"] == task
    assert result["pixels"] == 2 * 32 * 32
    assert plot.read_bytes().startswith(b"\x89PNG")
    ours, theirs = result["contestants"].values()
    for one in (ours, theirs):
        assert len(one["wall"]) == len(one["cpu"]) == 3
        assert 0 < min(one["wall"]) <= one["first_s"]
        assert one["load_s"] > 0
        assert one["temporary_bytes"] > 0
    assert ours["ours_to_it"] == {"median": 1.0, "min": 1.0, "cpu": 1.0}
    assert theirs["ours_to_it"]["min"] == pytest.approx(min(ours["wall"]) / min(theirs["wall"]))
    if task == "train":
        assert ours["difference"] == 0 <= theirs["difference"] < 1e-5
    else:  # products give no logits
        assert theirs["difference"] is None


def test_a_peer_computes_what_we_do(capsys):
    if not Contestant("timm", "timm").is_there():
        pytest.skip("timm is not installed")
    for task in ("inference", "train"):
        options = ["--model=vit_tiny_patch16_224", f"--task={task}", "--batch-size=1"]
        options += ["--img-size=32", "--rounds=1", "--peer=timm"]
        assert cli.main(["benchmark", *options, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert 0 < result["contestants"]["timm"]["difference"] < 1e-4
    assert cli.main(["benchmark", *options]) == 0
    assert "\n  timm " in capsys.readouterr().out


def test_other_outputs_are_refused():
    logits = np.random.default_rng(0).normal(size=(2, 5))
    contestants = [OURS, Contestant("peer", "timm")]
    outputs = {"ours": logits, "peer": logits + 2e-3 * logits.std()}
    with pytest.raises(
        UserError, match=r"32 px, float32: the outputs of peer differ from those of ours"
    ):
        differences(CASE, contestants, outputs)
    half = dataclasses.replace(CASE, dtype="bfloat16")
    found = differences(half, contestants, outputs)
    assert found == {"ours": 0.0, "peer": pytest.approx(2e-3)}
    with pytest.raises(UserError, match="outputs of peer differ"):
        differences(half, contestants, outputs | {"peer": np.full_like(logits, np.nan)})


def test_a_worker_that_ends_leaves_its_last_words(tmp_path):
    odd = Contestant("odd", "ours", variant={"scann": True})
    with pytest.raises(UserError, match=r"^odd: its process ended: .*scann"):
        Worker(odd, write_case(CASE, "native", tmp_path), tmp_path)


def test_ratios_are_of_rounds_of_minima_and_of_cpu_time():
    """The machine was busy in the second round: both were slow, and the ratio is the same."""
    ours = [{"wall": wall, "cpu": cpu} for wall, cpu in [(1.0, 2.0), (10.0, 3.0), (3.0, 2.0)]]
    theirs = [{"wall": wall, "cpu": cpu} for wall, cpu in [(2.0, 4.0), (20.0, 5.0), (2.0, 4.0)]]
    assert compare(ours, theirs) == {"median": 0.5, "min": 0.5, "cpu": 0.5}


@pytest.mark.long
def test_formats_divide_peers_into_groups(monkeypatch):
    """Each group has us, on the weights that its peers read, and no one who cannot do the case."""
    seen = []

    def record(case, job, contestants, folder, **options):
        seen.append((Path(job["weights"]).name, [one.name for one in contestants]))
        return {}

    monkeypatch.setattr(runner, "measure", record)
    peers = [Contestant(name, name) for name in ("timm", "timm-compiled", "vit_jax", "big_vision")]
    run_case(CASE, [OURS, SCAN, *peers], rounds=1)
    assert seen == [
        ("weights.safetensors", ["ours", "scan", "timm", "timm-compiled"]),
        ("weights.npz", ["ours", "vit_jax", "big_vision"]),
    ]
    seen.clear()
    run_case(Case("swin_tiny_patch4_window7_224", img_size=56), [OURS, *peers], rounds=1)
    assert seen == [("weights.safetensors", ["ours", "timm", "timm-compiled"])]


def test_utilisation_is_of_the_models_own_products():
    """ViT-Ti/16 takes 1.26 G multiply-adds an image (timm's results table), backward two more."""
    case = Case("vit_tiny_patch16_224", "train", batch_size=256, dtype="bfloat16")
    assert case.flops == pytest.approx(2 * 3 * 256 * 1.26e9, rel=0.01)
    half = [{"wall": 2 * case.flops / 989e12}]
    assert utilisation(case, "NVIDIA H100 80GB HBM3", half) == pytest.approx(0.5)
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") is None
    assert peak_flops("cpu", "bfloat16") is None
    assert peak_flops("TPU v5 lite", "bfloat16") == 197e12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--peer=tim"], "--peer='tim' must be one of timm, timm-compiled"),
        (["--peer=timm=/nowhere/python"], "--peer timm: /nowhere/python has not all of torch"),
        (["--variant=scan"], "--variant 'scan' must be FIELD=VALUE"),
        (["--model=vit_tinny_patch16_224"], "vit_tiny_patch16_224"),
    ],
)
def test_mistakes_are_one_line(options, message, capsys):
    assert cli.main(["benchmark", *options]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_inputs_and_weights_are_the_same_every_time(tmp_path):
    jobs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        jobs.append(write_case(CASE, "google", tmp_path / name))
    for key in ("inputs", "weights"):
        first, second = (dict(np.load(job[key])) for job in jobs)
        assert all(np.array_equal(first[name], second[name]) for name in first)
        assert all(array.std() > 0 for array in first.values())
