"""Every benchmark runs to its end, on next to nothing, and prints its table."""

import argparse
import itertools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from xla_flags import UNOPTIMISED

from vitswin_jax.benchmark.cases import Case
from vitswin_jax.cli import benchmark

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
NUMBER = r"[\d,]+(\.\d+)?"
TINY = r"vit_tiny_patch16_224, inference, batch 1, 32 px, float32 \(load .*\)"
COMPARED = rf"  NAME +{NUMBER} .*"
TABLES = {  # script -> patterns of lines that it prints, in this order
    "checkpoint": [r"vit_tiny.*: 0\.07 GB; .*", r"checkpoints .*restored .*", r"np\.save .*"],
    "compile": [TINY, COMPARED.replace("NAME", "ours"), COMPARED.replace("NAME", "scan=True")],
    "gpu": [r"benchmarks/gpu\.py needs a GPU, and JAX finds none here, but cpu\."],
    "input": [
        *(rf"{level} +{NUMBER}( +\S+){{2}}" for level in ("decode", "crop, flip", "evaluation")),
        rf"ours, 0 worker\(s\)( +{NUMBER}){{2}} +- +{NUMBER}",
    ],
    "load": [rf"native, 0\.02 +{NUMBER} / {NUMBER} .*of safetensors.*"],
    "mae": [r"\| 0\.0 \| 196 \+ 1 \| 1\.000 \|.*", r"\| 0\.9 \| 19 \+ 1 \| 0\.102 \|.*"],
    "memory": [TINY, *(COMPARED.replace("NAME", name) for name in ("ours", "scan=True"))],
    "plans": [r"\| model \| slice .*", rf"\| `vit` \| .* \| 32 \| {NUMBER} M \|.*"],
    "pretrain": [r"\| model \| begins .*", r"\| ViT \| from `mae` \| 0\.002 \|.*", "digits, 1 .*"],
    "scaling": [TINY, COMPARED.replace("NAME", "ours")],
    "stops": [r" *1 .* s  ended .* s later .*", r"1 signals, 0 faults, \d runs .*", "kept"],
    "throughput": [TINY, *(COMPARED.replace("NAME", name) for name in ("ours", "products"))],
    "week": [
        r"stays +1 .*",
        "unbroken +ok .*",
        "stays +ok .*seen once.*",
        "stays +ok .*bit for .*",
    ],
    "windows": [
        rf"\| 3 \| {passes} \| `{attention}` \|.*"
        for attention in ("xla", "pairs")
        for passes in ("forward", "both")
    ],
}
RUN_BY_OTHERS = {"input_peers", "suites"}
LONG = {"pretrain", "stops", "week"}  # whole runs of the trainer
LONG |= {
    "checkpoint",
    "compile",
    "memory",
    "scaling",
}  # the last three are `throughput` in other words


def test_every_script_is_here():
    assert {path.stem for path in SCRIPTS.glob("*.py")} == {*TABLES, *RUN_BY_OTHERS}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in TABLES],
)
def test_it_prints_its_table(name):
    if name == "gpu" and jax.default_backend() == "gpu":
        pytest.skip("the line is of a machine without one")
    done = subprocess.run(
        [sys.executable, SCRIPTS / f"{name}.py", "--smoke"],
        check=False,
        capture_output=True,
        text=True,
        cwd=SCRIPTS.parent,
        env=os.environ | {"XLA_FLAGS": UNOPTIMISED},
    )
    assert done.returncode == (name == "gpu"), done.stderr
    printed = iter((done.stderr if name == "gpu" else done.stdout).splitlines())
    for pattern in TABLES[name]:
        assert any(re.fullmatch(pattern, line) for line in printed), (pattern, done.stdout)


@pytest.mark.parametrize("name", ["compile", "gpu", "memory", "scaling", "throughput"])
def test_suites_have_models_and_flags_that_there_are(name, monkeypatch):
    """All of what --smoke leaves out, but for running it."""
    monkeypatch.syspath_prepend(SCRIPTS)
    suites = runpy.run_path(SCRIPTS / f"{name}.py")["SUITES"]
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    for options in itertools.chain(*suites.values()):
        args = parser.parse_args(options)
        sizes = args.img_size or [None]
        for case in itertools.product(args.model, args.task, args.batch_size, sizes, args.dtype):
            assert Case(*case).title  # raises for a model or a size that there is not
