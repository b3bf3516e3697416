"""The worth of each piece of the speedrun's recipe: runs with one piece changed, at equal length.

python benchmarks/ablations.py [--family vit swin] [--rows NAME ...] [--seeds 3] [--epochs 3]
    [--cores 2] [--keep FOLDER] [--source FOLDER] [--picture FILE.png] [--smoke]

Each row is `vitswin train speedrun:fashion,FAMILY --epochs N` with the keys of `ROWS`: equally many
steps for all. The runs learn from 55,000 training images of Fashion-MNIST, and the table has the
accuracy on the other 5,000 (benchmarks/speedrun.py describes them): the mean over the seeds and its
standard deviation, and the difference to the recipe. A pair of runs with equal seeds has the same
order of images. The difference's own deviation is over these pairs.

A finished run is one line of `runs.jsonl` in `--keep`, and the same command skips it. So the table
can be filled over several days, and by parts: `--rows "the recipe" "no positions"`. The images are
written once, into the same folder.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from fashion import DEBIAN
from speedrun import (
    CHOOSING,
    SMOKE,
    SMOKE_IMAGES,
    VALIDATED,
    Run,
    machines,
    spread,
    train_all,
    use_cores,
    write_images,
    write_noise,
)

Accuracies = dict[str, dict[int, float]]
"""By row and seed, in [0, 1]."""
RECIPE = "the recipe"
OTHER = ("--optim.consistent_rms=None",)
"""Turns off the key that only Muon reads."""
BOTH: Mapping[str, Sequence[str]] = {
    RECIPE: (),
    "no mirror images": ("--augment.flip=False",),
    "no shifts": ("--augment.crop=none",),
    "mixup, 0.2": ("--augment.mixup_alpha=0.2",),
    "random erasing, 0.25": ("--augment.erase_prob=0.25",),
    "RandAugment": ("--augment.rand_augment=rand-m5-n1",),
    "no label smoothing": ("--augment.label_smoothing=0.0",),
    "no average (EMA)": ("--ema.decay=None", "--ema.warmup=False"),
    "AdamW": (*OTHER, "--optim.name=adamw", "--optim.peak_lr=0.002"),
    "AdamW, half the rate": (*OTHER, "--optim.name=adamw", "--optim.peak_lr=0.001"),
    "Lion": (*OTHER, "--optim.name=lion", "--optim.peak_lr=0.0003", "--optim.weight_decay=0.5"),
    "no weight decay": ("--optim.weight_decay=0.0",),
}
"""Pieces of the recipe that every family has, and the keys that change them."""
ROWS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "vit": BOTH
    | {
        "no positions": ("--model.pos_embed=none",),
        "positions of sines": ("--model.pos_embed=sincos2d",),
        "relative positions": ("--model.pos_embed=relative", "--model.pos_embed_at=every"),
        "rotary positions": ("--model.pos_embed=none", "--model.rope_type=axial"),
        "class token": ("--model.class_token=True", "--model.global_pool=token"),
        "no convolutions, 6 blocks": ("--model.stem=()", "--model.depth=6"),
    },
    "swin": BOTH
    | {
        "windows not shifted": ("--model.shift_windows=False",),
        "no relative bias": ("--model.relative_bias=False",),
        "absolute positions": ("--model.relative_bias=False", "--model.ape=True"),
        "absolute positions too": ("--model.ape=True",),
        "no convolutions": ("--model.stem=()",),
        "weights of 0.02 at the start": ("--model.init_std=0.02",),
        "drop path, 0.1": ("--model.drop_path_rate=0.1",),
    },
}
"""Rows by family: the name of what is changed, and the keys."""
SMOKE_ROWS = (RECIPE, "no positions")


def wanted(family: str, names: Sequence[str], *, seeds: int, epochs: float) -> list[Run]:
    """Returns the runs of a family's rows, all rows of a seed first; other families' have none."""
    return [
        {
            "family": family,
            "row": name,
            "seed": seed,
            "split": CHOOSING,
            "length": f"--epochs={epochs:g}",
            "keys": list(keys),
        }
        for seed in range(seeds)
        for name, keys in ROWS[family].items()
        if name in names
    ]


def differences(rows: Accuracies, name: str) -> list[float]:
    """Returns a row's accuracies less the recipe's, in points, over the seeds that both have."""
    recipe = rows.get(RECIPE, {})
    return [100 * (rows[name][seed] - recipe[seed]) for seed in rows[name] if seed in recipe]


def accuracies(runs: Sequence[Run]) -> dict[str, Accuracies]:
    """Returns the accuracies of finished runs by family, row and seed."""
    found: dict[str, Accuracies] = {}
    for run in runs:
        rows = found.setdefault(run["family"], {})
        rows.setdefault(run["row"], {})[run["seed"]] = run["accuracy"]
    return found


def table(family: str, rows: Accuracies) -> list[str]:
    """Returns the rows of docs/records.md's table, the recipe first and then the best first."""
    lines = []
    order = sorted(rows, key=lambda name: (name != RECIPE, -statistics.mean(rows[name].values())))
    for name in order:
        percent = spread([100 * accuracy for accuracy in rows[name].values()])
        points = [] if name == RECIPE else differences(rows, name)
        signed = f"{statistics.mean(points):+.2f}" if points else ""
        deviation = f" ± {statistics.stdev(points):.2f}" if len(points) > 1 else ""
        lines.append(f"| {family} | {name} | {len(rows[name])} | {percent} | {signed}{deviation} |")
    return lines


def draw(rows: Mapping[str, Accuracies], file: Path) -> None:
    """Draws each family's differences to its recipe, a dot for each seed and a bar for the mean."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    height = 0.6 + 0.3 * max(len(of_family) for of_family in rows.values())
    figure, axes = plt.subplots(1, len(rows), figsize=(6 * len(rows), height), squeeze=False)
    for axis, (family, of_family) in zip(axes[0], rows.items(), strict=True):
        points = {name: differences(of_family, name) for name in of_family if name != RECIPE}
        means = {name: statistics.mean(found) for name, found in points.items() if found}
        order = sorted(means, key=lambda name: means[name])
        axis.barh(order, [means[name] for name in order], color="#9db4c8")
        for at, name in enumerate(order):
            axis.plot(points[name], [at] * len(points[name]), ".", color="#20384f")
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=family, xlabel="points of accuracy, less the recipe's")
    figure.savefig(file, bbox_inches="tight", dpi=120)


def main() -> None:
    """Does the runs that are not finished, and prints the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    names = list(dict.fromkeys(name for rows in ROWS.values() for name in rows))
    parser.add_argument("--family", nargs="+", choices=tuple(ROWS), default=list(ROWS))
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.0, help="of each run")
    parser.add_argument("--cores", type=int, default=2, help="that a run may use")
    parser.add_argument("--keep", type=Path, help="folder of finished runs, which are skipped")
    parser.add_argument("--source", type=Path, default=DEBIAN, help="folder of Fashion-MNIST")
    parser.add_argument("--picture", type=Path, help="PNG of the differences")
    parser.add_argument("--smoke", action="store_true", help="two rows of a tiny ViT, on noise")
    args = parser.parse_args()
    use_cores(args.cores)
    with tempfile.TemporaryDirectory() as scratch:
        folder, source = (args.keep or Path(scratch)).absolute(), args.source
        if args.smoke:
            source = Path(scratch) / "noise"
            write_noise(source)
        validated = SMOKE_IMAGES[1] if args.smoke else VALIDATED
        write_images(source, folder / "data", validated=validated)
        if args.smoke:
            runs = wanted("vit", SMOKE_ROWS, seeds=1, epochs=1.0)
            runs = [run | {"keys": [*run["keys"], *SMOKE]} for run in runs]
        else:
            length = {"seeds": args.seeds, "epochs": args.epochs}
            runs = [run for one in args.family for run in wanted(one, args.rows, **length)]
        runs = train_all(runs, folder)
    found = accuracies(runs)
    print("| model | changed | seeds | validation | less the recipe's |")
    print("| --- | --- | --- | --- | --- |")
    for family, rows in found.items():
        print(*table(family, rows), sep="\n")
    print("", *machines(runs), sep="\n")
    if args.picture:
        draw(found, args.picture)


if __name__ == "__main__":
    main()
