"""The speedrun: the accuracy of a ViT and a Swin on Fashion-MNIST after 30 minutes of two cores.

python benchmarks/speedrun.py [--family vit swin] [--seeds 3] [--minutes 30 | --epochs N] [--final]
    [--cores 2] [--keep FOLDER] [--source FOLDER] [--smoke] [--section.key=value ...]

Each run is the command `vitswin train speedrun:fashion,FAMILY --minutes N` with a seed of its own,
in a process of its own on `--cores` cores. N minutes of wall time have the whole command: start,
the trial of the pace, compiling, training, evaluations and the report. Keys of the config, such as
`--model.depth=4`, are passed on, and part the runs of a folder. With `--epochs` in place of
`--minutes` a run takes the time that it takes.

Without `--final` the runs learn from 55,000 of the training images, and the table has the accuracy
on the other 5,000: the last ones of a shuffle whose seed never changes. Settings are chosen by
these. With `--final` the runs learn from all 60,000 images and the table has the accuracy on the
10,000 test images. The column "flips" averages the probabilities of an image and its mirror image;
the column "accuracy" has one prediction per image.

A finished run is one line of `runs.jsonl` in `--keep`, and the same command skips it. A run that
was interrupted starts anew, because its wall time would have a gap. The folder also has the log
(`NAME.log`) and the workdir of each run, with its recipe, its curves and its report.

`--source` is the folder of Fashion-MNIST's four .gz files (Debian: dataset-fashion-mnist). The
results are in docs/records.md.
"""

import argparse
import gzip
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from fashion import DEBIAN, SIDE, SPLITS, read_split
from machine import commit, processor
from PIL import Image

from vitswin_jax.core.rows import read_rows
from vitswin_jax.core.version import __version__

ROOT = Path(__file__).parents[1]
VALIDATED, SHUFFLED_BY = 5_000, 0
CHOOSING, FINAL = "validation", "test"
TABLES = {CHOOSING: "choosing.csv", FINAL: "final.csv"}
"""Images of a run by what it is tested on."""
SMOKE_IMAGES = 96, 32
SMOKE = ["--model.depth=1", "--model.embed_dim=16", "--model.num_heads=2", "--data.batch_size=16"]
CLASSES = 10
MINUTES = "--minutes"
OVER = 1.02
"""Times the limit, from which a run is marked as too long."""

Run = dict[str, Any]


def write_noise(source: Path) -> None:
    """Writes idx files of random images, for `--smoke`."""
    rng = np.random.default_rng(0)
    source.mkdir(parents=True)
    for name, count in zip(SPLITS.values(), SMOKE_IMAGES, strict=True):
        images = rng.integers(0, 256, (count, SIDE, SIDE), "u1")
        labels = (np.arange(count) % CLASSES).astype("u1")
        for part, header, array in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            data = gzip.compress(bytes(header) + array.tobytes())
            (source / f"{name}-{part}-ubyte.gz").write_bytes(data)


def write_images(source: Path, folder: Path, *, validated: int) -> None:
    """Writes the images as PNGs, and a table for choosing and one for the final runs.

    Both tables have splits "train" and "test". `validated` training images are the test split of
    the first: the last ones of a shuffle. Does nothing if the tables are there.
    """
    tables = {kind: folder / file for kind, file in TABLES.items()}
    if all(path.exists() for path in tables.values()):
        return
    lines: dict[str, list[str]] = {kind: ["path,label,split"] for kind in tables}
    for split in SPLITS:
        images, labels = read_split(source, split)
        (folder / split).mkdir(parents=True, exist_ok=True)
        order = np.random.default_rng(SHUFFLED_BY).permutation(len(images))
        chosen_by = set(order[-validated:].tolist())
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = f"{split}/{i:05}.png"
            Image.fromarray(image).save(folder / path)
            lines[FINAL].append(f"{path},{label},{split}")
            if split == "train":
                part = "test" if i in chosen_by else "train"
                lines[CHOOSING].append(f"{path},{label},{part}")
    for kind, path in tables.items():
        path.write_text("\n".join(lines[kind]) + "\n", encoding="utf-8")


def name_of(run: Run) -> str:
    """Returns the name of a run's files: all that distinguishes it from the others."""
    keys = [key.lstrip("-").replace("/", "-") for key in run["keys"]]
    words = (run["family"], run["split"], run["length"].lstrip("-"), str(run["seed"]), *keys)
    return " ".join(words)


def train(run: Run, folder: Path) -> Run:
    """Trains as the command does, under the wall clock; returns the run with its results."""
    workdir = folder / name_of(run)
    data = folder / "data" / TABLES[run["split"]]
    shutil.rmtree(workdir, ignore_errors=True)  # of a run that was interrupted
    words = ["train", f"{ROOT / 'configs' / 'speedrun.py'}:fashion,{run['family']}"]
    words += [run["length"], f"--workdir={workdir}", f"--seed={run['seed']}"]
    words += [f"--data.dataset={data}", *run["keys"]]
    load = os.getloadavg()[0]
    begin = time.monotonic()
    with (folder / f"{workdir.name}.log").open("w", encoding="utf-8") as log:
        vitswin(words, log=log)
    minutes = (time.monotonic() - begin) / 60
    rows = [row for _, row in read_rows(workdir / "metrics.jsonl").lines]
    plain, flipped = (
        json.loads(vitswin(["evaluate", str(workdir), str(data), "--split=test", "--json", *more]))
        for more in ([], ["--flip"])
    )
    return run | {
        "minutes": minutes,
        "epochs": max(row["epoch"] for row in rows),
        "images": plain["images"],
        "accuracy": plain["top1"],
        "flips": flipped["top1"],
        "load": load,
        **where(),
    }


def vitswin(words: list[str], *, log: Any = subprocess.PIPE) -> str:
    """Runs a command of the package and returns what it printed; ends where it fails."""
    command = [sys.executable, "-m", "vitswin_jax.cli", *words]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr or log.name}")
    return done.stdout


def where() -> dict[str, Any]:
    """Returns the machine, the versions and the commit that a run is of."""
    return {
        "machine": processor(),
        "cores": len(cores()),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "vitswin_jax": __version__,
        "commit": commit(),
    }


def cores() -> list[int]:
    """Returns the cores that this process and its children may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def use_cores(number: int) -> None:
    """Limits this process and its children to `number` cores, where the system can (Linux)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores()[:number])


def read_finished(file: Path) -> list[Run]:
    """Returns the finished runs of a file; none where there is no file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def train_all(wanted: list[Run], folder: Path) -> list[Run]:
    """Returns the wanted runs, finished: those of the file, and the others once they are done."""
    file, done = folder / "runs.jsonl", []
    for run in wanted:
        found = [row for row in read_finished(file) if run.items() <= row.items()]
        if not found:
            found = [train(run, folder)]
            with file.open("a", encoding="utf-8") as rows:
                rows.write(json.dumps(found[0]) + "\n")
        done.append(found[0])
        print(f"{name_of(run)}: {100 * found[0]['accuracy']:.2f} %", file=sys.stderr, flush=True)
    return done


def table(runs: list[Run]) -> list[str]:
    """Returns the table of docs/records.md, and a line for each machine and commit."""
    lines = [
        "| model | seed | minutes | epochs | images | accuracy | flips |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        flag, _, limit = run["length"].partition("=")
        late = " (over)" if flag == MINUTES and run["minutes"] > OVER * float(limit) else ""
        lines.append(
            f"| {run['family']} | {run['seed']} | {run['minutes']:.1f}{late} | "
            f"{run['epochs']:.1f} | {run['split']}, {run['images']:,} | "
            f"{100 * run['accuracy']:.2f} % | {100 * run['flips']:.2f} % |"
        )
    for family in dict.fromkeys(run["family"] for run in runs):
        own = [run for run in runs if run["family"] == family]
        cells = [spread([100 * run[column] for run in own]) for column in ("accuracy", "flips")]
        lines.append(f"| {family} | mean of {len(own)} | | | | {' | '.join(cells)} |")
    return [*lines, "", *machines(runs)]


def machines(runs: list[Run]) -> list[str]:
    """Returns a line for each machine, version and commit of the runs."""
    lines = (
        f"{run['machine']}, {run['cores']} cores; vitswin_jax {run['vitswin_jax']} at "
        f"{run['commit']}, jax {run['jax']}, Python {run['python']}"
        for run in runs
    )
    return list(dict.fromkeys(lines))


def spread(numbers: list[float]) -> str:
    """Returns the mean of percentages and, of several, their standard deviation."""
    deviation = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.2f}{deviation} %"


def main() -> None:
    """Does the runs that are not finished, and prints the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--family", nargs="+", choices=("vit", "swin"), default=["vit", "swin"])
    parser.add_argument("--seeds", type=int, default=3)
    until = parser.add_mutually_exclusive_group()
    until.add_argument(MINUTES, type=float, default=30.0, help="of wall time, for each run")
    until.add_argument("--epochs", type=float, help="of each run, in place of a time")
    parser.add_argument("--cores", type=int, default=2, help="that a run may use")
    parser.add_argument("--final", action="store_true", help="all training images; the test images")
    parser.add_argument("--keep", type=Path, help="folder of finished runs, which are skipped")
    parser.add_argument("--source", type=Path, default=DEBIAN, help="folder of Fashion-MNIST")
    parser.add_argument("--smoke", action="store_true", help="a tiny ViT, on noise")
    args, keys = parser.parse_known_args()
    if strange := [key for key in keys if not key.startswith("--") or "=" not in key]:
        parser.error(f"{strange[0]}: is no flag; a key of the config is --section.key=value")
    use_cores(args.cores)
    families, seeds, validated = args.family, args.seeds, VALIDATED
    in_time = args.epochs is None
    length = f"{MINUTES}={args.minutes:g}" if in_time else f"--epochs={args.epochs:g}"
    if args.smoke:
        families, seeds, keys, length = ["vit"], 1, SMOKE, "--epochs=1"
        validated = SMOKE_IMAGES[1]
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.keep or Path(scratch)).absolute()
        source = args.source
        if args.smoke:
            source = Path(scratch) / "noise"
            write_noise(source)
        write_images(source, folder / "data", validated=validated)
        split = FINAL if args.final else CHOOSING
        wanted = [
            {"family": family, "seed": seed, "split": split, "length": length, "keys": keys}
            for family in families
            for seed in range(seeds)
        ]
        runs = train_all(wanted, folder)
    print(*table(runs), sep="\n")


if __name__ == "__main__":
    main()
