"""Every benchmark runs to its end, on next to nothing, and prints its table."""

import argparse
import dataclasses
import importlib.util
import itertools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from kinds import mostly_long
from xla_flags import UNOPTIMISED

from vitswin_jax import create_model
from vitswin_jax.benchmark.cases import Case
from vitswin_jax.cli import benchmark
from vitswin_jax.nn.forms import Forms

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
NUMBER = r"[\d,]+(\.\d+)?"
TINY = r"vit_tiny_patch16_224, inference, batch 1, 32 px, float32 \(load .*\)"
KINDS = ("none", "fp8", "int8")
DEPLOYED = ("float32", "unfused", "int8", "int8-qdq", "int8-qdq-symmetric")
COMPARED = rf"  NAME +{NUMBER} .*"
TABLES = {  # script -> patterns of lines that it prints, in this order
    "ablations": [
        rf"\| vit \| the recipe \| 1 \| {NUMBER} % \|  \|",
        rf"\| vit \| no positions \| 1 \| {NUMBER} % \| [+-]{NUMBER} \|",
        r".*, \d+ cores; vitswin_jax .*",
    ],
    "budget": [
        *(rf"\| digits \| 0 \| {by} \| {NUMBER} % \| .*" for by in ("chosen", "by hand")),
    ],
    "checkpoint": [r"vit_tiny.*: 0\.07 GB; .*", r"checkpoints .*restored .*", r"np\.save .*"],
    "compile": [TINY, COMPARED.replace("NAME", "ours"), COMPARED.replace("NAME", "scan=True")],
    "deploy": [
        r".*; 2 threads; onnxruntime .*",
        *(
            rf"\| `vit_tiny_patch16_224` \| 1 \| onnxruntime \| {kind} \| {NUMBER} \| .* \|"
            for kind in DEPLOYED
        ),
        *(
            rf"\| digits.safetensors \| onnxruntime \| {kind} \| {NUMBER} \| .* {NUMBER} % \|"
            for kind in DEPLOYED
        ),
    ],
    "distil": [
        *(rf"\| ViT \| {start} \| 2 \| {NUMBER} % \| .*" for start in ("from scratch", "taught")),
    ],
    "gpu": [
        r'\{"check": "flash", .* "tokens": 197, "right": true, .*',
        r"vit_tiny_patch16_224, inference, batch 2, 32 px, float32 *",
        rf"  ours( +{NUMBER}){{2}} +1\.000 +.*",
        r"swin_tiny_patch4_window7_224, train, batch 2, 32 px, float32 *",
        rf"  ours( +{NUMBER}){{2}} +1\.000 +.*",
        rf"train\.py, vit_tiny_patch16_224, batch 4( +{NUMBER}){{6}} +- +-",
        rf"plan, vit_tiny_patch16_224, batch 4( +-){{5}} +{NUMBER} +- +-",
    ],
    "gpu_kernels": [r'\{"check": "flash", .* "tokens": 577, "right": true, .*'],
    "gpu_plan": [r"benchmarks/gpu_plan\.py needs JAX's plugin for CUDA: .*"],
    "gpu_registers": [r"benchmarks/gpu_registers\.py needs JAX's plugin for CUDA: .*"],
    "gradient_sums": [r"\| devices \| ring .*", rf"\| 2 \| {NUMBER}% \| {NUMBER}% \| .*"],
    "input": [
        *(rf"{level} +{NUMBER}( +\S+){{2}}" for level in ("decode", "crop, flip", "evaluation")),
        rf"ours, 0 worker\(s\)( +{NUMBER}){{2}} +- +{NUMBER}",
    ],
    "load": [rf"native, 0\.02 +{NUMBER} / {NUMBER} .*of safetensors.*"],
    "load_large": [r"peak \d+ MB, loaded \d+ MB, .* tensors more, at most 4: (ok|over)"],
    "mae": [r"\| 0\.0 \| 196 \+ 1 \| 1\.000 \|.*", r"\| 0\.9 \| 19 \+ 1 \| 0\.102 \|.*"],
    "memory": [TINY, *(COMPARED.replace("NAME", name) for name in ("ours", "scan=True"))],
    "plans": [r"\| model \| slice .*", rf"\| `vit` \| .* \| 32 \| {NUMBER} M \|.*"],
    "pretrain": [r"\| model \| begins .*", r"\| ViT \| from `mae` \| 0\.002 \|.*", "digits, 1 .*"],
    "quantize": [
        *(rf"vit_{kind}_0: {NUMBER} %" for kind in KINDS),
        *(rf"\| vit \| {kind} \| .*" for kind in KINDS),
    ],
    "scaling": [TINY, COMPARED.replace("NAME", "ours")],
    "scoreboard": [
        r"keras-hub: skipped; --peer keras-hub=PYTHON needs all of jax, keras_hub, optax\.",
        r"\| \*\*vit_tiny_patch16_224, inference, batch 1, 32 px, float32\*\* \| .*",
        rf"\| ours \| {NUMBER} \|  \|  \| {NUMBER} \| {NUMBER} \|",
        rf"\| onnxruntime \| {NUMBER} \| {NUMBER} \| {NUMBER}e-\d+ \| {NUMBER} \| {NUMBER} \|",
        r"Measured on .*, commit .*, 1 rounds\. Load after each row: .*",
    ],
    "small_images": [rf"\| 1 \| {NUMBER} \| {NUMBER} \| {NUMBER} \|"],
    "speedrun": [
        rf"\| vit \| 0 \| {NUMBER} \| 1\.0 \| validation, 32 \| {NUMBER} % \| .*",
        r"\| vit \| mean of 1 \| .*",
        r".*, \d+ cores; vitswin_jax .*",
    ],
    "stops": [r" *1 .* s  ended .* s later .*", r"1 signals, 0 faults, \d runs .*", "kept"],
    "stalls": [
        r"vit_tiny_patch16_224, batches of 1, 0\.07 GB of state",
        rf"a step without saves: {NUMBER} s \(median\)",
        *(rf"{kind}: a save stalls by -?{NUMBER} steps .*" for kind in ("checkpoint", "local set")),
    ],
    "throughput": [TINY, *(COMPARED.replace("NAME", name) for name in ("ours", "products"))],
    "week": [
        r"stays +1 .*",
        "unbroken +ok .*",
        "stays +ok .*seen once.*",
        "stays +ok .* 0 steps lost beyond the newest whole state; .*",
        "stays +ok .*bit for .*",
        rf"\| stays \| 2 \| {NUMBER} \|( {NUMBER} % \|){{9}}",
        rf"\| stays \| {NUMBER} / {NUMBER} \| .*",
    ],
    "zoo": [r"benchmarks/zoo\.py needs timm, .*"],
    "windows": [
        rf"\| 3 \| {passes} \| `{attention}` \|.*"
        for attention in ("xla", "pairs")
        for passes in ("forward", "both")
    ],
}
NEEDS = {"gpu_plan": "jax_plugins", "gpu_registers": "jax_plugins", "zoo": "timm"}
"""Scripts of which only the line that refuses is tried, and the package that they need."""
RUN_BY_OTHERS = {"fashion", "gpu_rows", "gpu_runs", "input_peers", "machine", "suites"}
RUN_BY_OTHERS |= {"week_runs", "week_states"}


def test_every_script_is_here():
    assert {path.stem for path in SCRIPTS.glob("*.py")} == {*TABLES, *RUN_BY_OTHERS}


@pytest.mark.parametrize(
    "name",
    mostly_long(TABLES, NEEDS),
)
def test_it_prints_its_table(name):
    refused = name in NEEDS
    if refused and importlib.util.find_spec(NEEDS[name]):
        pytest.skip("the line is of a machine without the package")
    done = subprocess.run(
        [sys.executable, SCRIPTS / f"{name}.py", "--smoke"],
        check=False,
        capture_output=True,
        text=True,
        cwd=SCRIPTS.parent,
        env=os.environ | {"XLA_FLAGS": UNOPTIMISED},
    )
    assert done.returncode == refused, done.stderr
    printed = iter((done.stderr if refused else done.stdout).splitlines())
    for pattern in TABLES[name]:
        assert any(re.fullmatch(pattern, line) for line in printed), (pattern, done.stdout)


@pytest.mark.parametrize("name", ["compile", "memory", "scaling", "throughput"])
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


def test_the_gpus_rows_have_models_forms_and_time(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    gpu = runpy.run_path(SCRIPTS / "gpu.py")
    for row in (*gpu["ROWS"], *gpu["CANDIDATES"]):
        assert row.case.title
        for one in row.contestants:
            fields = {f"form.{field.name}" for field in dataclasses.fields(Forms)} | {"attn_impl"}
            assert all(name in fields or "flag.xla_gpu_" in name for name in one.variant)
            if impl := one.variant.get("attn_impl"):
                create_model(row.case.name, attn_impl=impl)
    alone = gpu["groups"](gpu["ROWS"], 1.0)
    together = gpu["groups"](gpu["ROWS"], 1e9)
    assert [len(group) for group in alone] == [1] * len(gpu["ROWS"])
    assert [len(group) for group in together] == [len(gpu["ROWS"])]


def test_a_part_of_a_title_selects_rows_and_runs(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    gpu = runpy.run_path(SCRIPTS / "gpu.py")
    everything = [*gpu["ROWS"], *gpu["END_TO_END"], *gpu["PLANS"]]
    assert gpu["_asked"](everything, None) == everything
    assert gpu["_asked"](everything, ["train.py"]) == [*gpu["END_TO_END"]]
    assert gpu["_asked"](everything, ["plan"]) == [*gpu["PLANS"]]
    assert gpu["_asked"](everything, ["inference"]) == [
        row for row in gpu["ROWS"] if row.case.task == "inference"
    ]


def test_whole_runs_are_a_table_of_shares_and_memory(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    table = runpy.run_path(SCRIPTS / "gpu_rows.py")["table_of_runs"]
    facts = {"model": "m", "batch_size": 8, "planned_bytes": 4 << 30, "peak_bytes": 3 << 30}
    measured = {"step": 900.0, "train": 810.0, "input": 1000.0}
    rates = {f"{name}_images_per_second": rate for name, rate in measured.items()}
    run = {"run": "train.py", **facts, **rates, "share_of_step": 0.9, "waiting_for_input": 0.05}
    cells = table([run, {"run": "plan", **facts, **rates}, {"run": "plan", "right": False}])
    assert [" ".join(line.split()) for line in cells[1:]] == [
        "train.py, m, batch 8 900 810 1000 0.900 0.050 4.00 3.00 0.75",
        "plan, m, batch 8 - - - - - 4.00 3.00 0.75",
    ]


def test_a_clock_ends_what_it_watches(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    clock = runpy.run_path(SCRIPTS / "gpu.py")["Clock"](0.2)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    clock.watch(process)
    assert process.wait(timeout=30) < 0
    assert clock.left < 0


def test_a_wrong_kernel_and_a_wrong_output_are_found(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    is_wrong = runpy.run_path(SCRIPTS / "gpu.py")["_is_wrong"]
    assert is_wrong({"check": "flash", "right": False})
    assert is_wrong({"contestants": {"ours": {"right": True}, "timm": {"right": False}}})
    assert not is_wrong({"contestants": {"ours": {"right": True}, "timm": "is not installed"}})
    assert not is_wrong({"check": "flash", "right": True}) and not is_wrong({"tokens": 50})
