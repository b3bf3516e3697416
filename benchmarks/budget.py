"""Accuracy of `vitswin train --minutes` beside a hand-written recipe at equal time.

python benchmarks/budget.py [--minutes 3] [--data digits fashion] [--seeds 1] [--smoke]
    [--fashion FOLDER] [--folder DIR] [--json FILE]

For each dataset and seed two commands take turns, both with `--minutes N`: one chooses everything,
the other is given the recipe, so that only its epochs are chosen. The table has the test accuracy
of both, and the time that each whole command took, in seconds and as a share of N. It is in
docs/train.md.

The recipes are configs/digits.py:vit, and for Fashion-MNIST the same model at 28 pixels with flips
and batches of 128. Fashion-MNIST is read from Debian's package dataset-fashion-mnist (`--fashion`:
the folder with its four .gz files) and written as a folder of PNGs into `--folder`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from fashion import DEBIAN, SPLITS, read_split
from PIL import Image

from vitswin_jax import load_metadata

ROOT = Path(__file__).parents[1]
FASHION = """\"\"\"Fashion-MNIST by hand: the digits' ViT at 28 pixels, with flips.\"\"\"

from configs import base, digits


def get_config():
    model = {"name": "vit", **digits.MODELS["vit"], "img_size": 28}
    return base.recipe(
        digits.IMAGES,
        model=model,
        data={"dataset": "DATA", "batch_size": 128},
        augment={"label_smoothing": 0.1, "flip": True, "rotate": 0.0},
        optim={"peak_lr": 1e-3, "epochs": 10.0, "warmup_epochs": 0.5, "max_grad_norm": 1.0},
    )
"""
SMOKE = ["--model.depth=1", "--model.embed_dim=16", "--model.num_heads=2"]
SMOKE_MINUTES = 0.6


def write_fashion(source: Path, folder: Path) -> Path:
    """Writes Fashion-MNIST as class folders of PNGs, unless they are there; returns the folder."""
    done = folder / "done"
    for split in () if done.exists() else SPLITS:
        images, labels = read_split(source, split)
        for label in range(10):
            (folder / "data" / split / str(label)).mkdir(parents=True, exist_ok=True)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(folder / "data" / split / str(label) / f"{i:05}.png")
    done.touch()
    return folder / "data"


def train(words: list[str], workdir: Path, minutes: float, seed: int) -> dict[str, float]:
    """Runs a command; returns its test accuracy in per cent and the seconds it took."""
    command = [sys.executable, "-m", "vitswin_jax.cli", "train", *words, f"--minutes={minutes}"]
    command += [f"--workdir={workdir}", f"--seed={seed}"]
    begin = time.monotonic()
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ)
    seconds = time.monotonic() - begin
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    accuracy = 100 * load_metadata(workdir).metrics["test/accuracy"]
    print(f"{workdir.name}: {accuracy:.2f} %, {seconds:.0f} s", flush=True)
    return {"accuracy": accuracy, "seconds": seconds}


def table(runs: list[dict[str, Any]], minutes: float) -> str:
    """Returns the table of docs/train.md."""
    lines = [
        "| data | seed | | accuracy | seconds | of the time |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        share = 100 * run["seconds"] / (60 * minutes)
        lines.append(
            f"| {run['data']} | {run['seed']} | {run['by']} | {run['accuracy']:.1f} % | "
            f"{run['seconds']:.0f} | {share:.0f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--data", nargs="+", choices=("digits", "fashion"), default=["digits"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fashion", type=Path, default=DEBIAN)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    minutes = SMOKE_MINUTES if args.smoke else args.minutes
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if args.folder is None else args.folder
        folder.mkdir(parents=True, exist_ok=True)
        words = {"digits": (["digits"], ["digits:vit"])}
        if "fashion" in args.data:
            data = write_fashion(args.fashion, folder)
            recipe = folder / "fashion.py"
            recipe.write_text(FASHION.replace("DATA", str(data)), encoding="utf-8")
            words["fashion"] = ([str(data)], [str(recipe)])
        runs = []
        for data in args.data:
            for seed in range(args.seeds):
                for by, given in zip(("chosen", "by hand"), words[data], strict=True):
                    workdir = folder / f"{data}-{by.replace(' ', '-')}-{seed}"
                    more = SMOKE if args.smoke else []
                    found = train([*given, *more], workdir, minutes, seed)
                    runs.append({"data": data, "seed": seed, "by": by, **found})
    device = jax.devices()[0].device_kind
    print(f"{device}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}, jax {jax.__version__}")
    print(table(runs, minutes))
    if args.json is not None:
        args.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
