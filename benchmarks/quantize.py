"""Accuracy lost by fp8 and int8 training: the digits' recipes, whole, with several seeds.

python benchmarks/quantize.py [--seeds 2] [--family vit swin] [--folder DIR] [--json FILE] [--smoke]

Each seed trains the recipe of configs/digits.py with each `config.quantize`: the same parameters,
batches and augmentation to begin with. All take the test split's 450 images at the end, in float32,
and no number was chosen by them. Of n seeds the table has the mean, every seed's own accuracy, and
the difference to "none": its mean and its standard error, over the seeds. An image is 0.22 points.
The table is in docs/train.md. `--folder` keeps the runs, and the same command resumes them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from vitswin_jax import load_metadata

ROOT = Path(__file__).parents[1]
KINDS = ("none", "fp8", "int8")
SMOKE = ["--config.model.depth=1", "--config.optim.epochs=0.2", "--config.optim.warmup_epochs=0.1"]

Accuracies = dict[str, dict[str, list[float]]]
"""Test accuracies in per cent, by family and kind, one for each seed."""


def train(family: str, kind: str, seed: int, folder: Path, more: list[str]) -> float:
    """Runs train.py and returns its test accuracy in per cent."""
    workdir = folder / f"{family}_{kind}_{seed}"
    command = [sys.executable, str(ROOT / "train.py")]
    command += [f"--config={ROOT / 'configs' / 'digits.py'}:{family}", f"--workdir={workdir}"]
    command += [f"--config.seed={seed}", f"--config.quantize={kind}", *more]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    accuracy = 100 * load_metadata(workdir).metrics["test/accuracy"]
    print(f"{workdir.name}: {accuracy:.2f} %", flush=True)
    return accuracy


def table(accuracies: Accuracies) -> str:
    """Returns the table of docs/train.md."""
    lines = ["| | quantize | mean | difference | of each seed |", "| --- | --- | --- | --- | --- |"]
    for family, kinds in accuracies.items():
        for kind, found in kinds.items():
            each = ", ".join(f"{a:.2f}" for a in found)
            apart = [a - b for a, b in zip(found, kinds["none"], strict=True)]
            error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
            difference = "" if kind == "none" else f"{statistics.mean(apart):+.2f} ± {error:.2f}"
            mean = f"{statistics.mean(found):.2f}"
            lines.append(f"| {family} | {kind} | {mean} | {difference} | {each} |")
    return "\n".join(lines)


def main() -> None:
    """Trains all and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--family", nargs="+", choices=("vit", "swin"), default=["vit", "swin"])
    parser.add_argument("--folder", type=Path, help="keeps the runs")
    parser.add_argument("--json", type=Path, help="writes the accuracies")
    parser.add_argument("--smoke", action="store_true", help="a ViT of one block for 8 steps")
    args = parser.parse_args()
    families, seeds = (["vit"], 1) if args.smoke else (args.family, args.seeds)
    accuracies: Accuracies = {family: {kind: [] for kind in KINDS} for family in families}
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        for seed in range(seeds):
            for family in families:
                for kind in KINDS:
                    accuracy = train(family, kind, seed, folder, SMOKE if args.smoke else [])
                    accuracies[family][kind].append(accuracy)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}\n\n{table(accuracies)}")
    if args.json:
        args.json.write_text(json.dumps(accuracies, indent=1) + "\n")


if __name__ == "__main__":
    main()
