"""Accuracy gained by pre-training, with 10 labelled images per class: digits, Fashion-MNIST.

python benchmarks/pretrain.py [--dataset fashion] [--seeds 3] [--folder DIR] [--json FILE]
                              [--source DIR] [--smoke]
python benchmarks/pretrain.py --probe mae dino --minutes 10 [--dataset fashion] ...

A tiny ViT and a tiny Swin learn by SimMIM, the ViT by MAE as well, from all training images, whose
labels they never see; then each is fine-tuned on 10 images a class, and so is the same model from
scratch, in equally many steps. Each seed has images, parameters, masks and order of its own.

Each way to begin is tried at every rate of PEAK_LRS, and the one that names the most of other
training images rightly, over all seeds, is its own; with that alone the test images are looked at,
once. Both ends are the trainer's runs, by train_and_evaluate.

With --probe, methods have equally many minutes each: their steps are as many as a short run of each
says. No model is fine-tuned, and the features are tested by nearest neighbours and a linear probe.

Fashion-MNIST is that of Debian's dataset-fashion-mnist, in --source. The tables are in
docs/pretrain.md.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from fashion import DEBIAN, read_split
from ml_collections import ConfigDict
from PIL import Image
from sklearn.datasets import load_digits

from vitswin_jax import load_metadata, load_pretrained
from vitswin_jax.data.pipeline import make_eval_batches
from vitswin_jax.data.sources.open import open_source
from vitswin_jax.evaluate.evaluation import make_predict, predict_dataset
from vitswin_jax.report.results import Result
from vitswin_jax.trainer import train_and_evaluate

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

FASHION = DEBIAN
A_CLASS, STEPS = 10, 300  # labelled images, and steps on them
UNLABELLED, VALIDATED, TESTED = 10_000, 1_500, 2_000  # images at most
PEAK_LRS = (2e-3, 6e-3)
DATASETS = {  # name -> (side of an image, epochs of pre-training)
    "digits": (16, 150.0),
    "fashion": (32, 30.0),
}
# Whatever its size, an image is 4x4 of a ViT's patches and 8x8 of a Swin's. SimMIM's ViT is given
# its positions, as MAE is: tables that begin near 0 are learned in the first third of a short run.
VIT = {"embed_dim": 48, "depth": 3, "num_heads": 3, "global_pool": "avg"}
SWIN = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "init_std": 0.2}
MODELS = {  # what the table says -> (family, patches along a side, other fields)
    "ViT": ("vit", 4, VIT),
    "ViT, sin-cos positions": ("vit", 4, VIT | {"pos_embed": "sincos2d"}),
    "Swin": ("swin", 8, SWIN),
}
METHODS = {  # sections of the config
    "simmim": {"pretrain": {"mask_ratio": 0.6}},
    "mae": {
        "pretrain": {
            "mask_ratio": 0.6,
            "norm_pix": False,
            "decoder_dim": 48,
            "decoder_depth": 2,
            "decoder_heads": 4,
        }
    },
    "dino": {},  # as in the recipe of the digits
}
PACED = 40  # steps of the run that says how long one takes
SCRATCH = "from scratch"
ROWS = (
    ("ViT", SCRATCH),
    ("ViT", "mae"),
    ("ViT, sin-cos positions", SCRATCH),
    ("ViT, sin-cos positions", "simmim"),
    ("Swin", SCRATCH),
    ("Swin", "simmim"),
)


def read_images(dataset: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns images uint8 (n, h, w) and labels of the training and of the test split."""
    if dataset == "digits":
        bunch = load_digits()
        images, test = (bunch.images * 255 / 16).astype(np.uint8), np.arange(1797) % 4 == 0
        return images[~test], bunch.target[~test], images[test], bunch.target[test]
    images, labels = read_split(FASHION, "train")
    test_images, test_labels = read_split(FASHION, "test")
    return images[:UNLABELLED], labels[:UNLABELLED], test_images[:TESTED], test_labels[:TESTED]


def write_split(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes images as a folder of class folders."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert("RGB").save(path)


def write_datasets(folder: Path, dataset: str, seeds: int) -> None:
    """Writes a dataset of all training images, and for each seed one of a few of each class.

    Beside the few are other training images, to choose by.
    """
    images, labels, test_images, test_labels = read_images(dataset)
    write_split(folder / "all" / "train", images, labels)
    write_split(folder / "all" / "test", test_images, test_labels)
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(labels))
        few = np.concatenate([order[labels[order] == c][:A_CLASS] for c in range(10)])
        others = np.setdiff1d(order, few, assume_unique=True)[:VALIDATED]
        for name, chosen in (("train", few), ("validation", others)):
            write_split(folder / f"few_{seed}" / name, images[chosen], labels[chosen])


def make_config(folder: Path, dataset: str, model: str, seed: int) -> ConfigDict:
    """Returns the settings that a model's pre-training and fine-tuning share."""
    side, _ = DATASETS[dataset]
    family, patches, fields = MODELS[model]
    from configs import base

    config = base.get_config()
    with config.unlocked():
        config.model = base.model_section(
            family, img_size=side, patch_size=side // patches, **fields
        )
    config.seed = seed
    config.data.update(dataset=str(folder), batch_size=48, eval_batch_size=240)
    config.preprocess.update(mean=(0.5,) * 3, std=(0.5,) * 3, crop_mode="squash", crop_fraction=1.0)
    config.augment.update(crop="shift", shift=0.1, flip=dataset == "fashion")
    if dataset == "digits":
        config.augment.update(rotate=12.0, zoom=0.1)
    config.optim.max_grad_norm = 1.0
    config.pretrain.probe_every = 0
    return config


def pretrain(folder: Path, dataset: str, model: str, method: str, *, seed: int) -> Path:
    """Pre-trains on all images, without labels; returns the run's folder."""
    side, epochs = DATASETS[dataset]
    config = make_config(folder / "all", dataset, model, seed)
    set_method(config, method, side)
    config.optim.update(epochs=epochs, warmup_epochs=epochs / 20, peak_lr=3e-3)
    config.run.update(eval_epochs=epochs, checkpoint_epochs=epochs)
    workdir = folder / f"{model}, {method}, {seed}"
    print(workdir.name, train_and_evaluate(config, workdir), sep=": ", flush=True)
    return workdir


def set_method(config: ConfigDict, method: str, side: int) -> None:
    """Sets the method of pre-training, for images of `side` pixels."""
    config.pretrain.method = method
    config.update(METHODS[method])
    if method == "simmim":
        config.pretrain.mask_patch = side // 4
    if method == "dino":
        from configs import mim_digits

        config.update(mim_digits.METHODS["dino"])
        config.augment.local_size = side // 2


def probe(
    folder: Path, dataset: str, model: str, method: str, *, seed: int, minutes: float
) -> dict[str, Any]:
    """Pre-trains for some minutes; returns a row: steps, and accuracies of probes in [0, 1]."""
    side, _ = DATASETS[dataset]
    config = make_config(folder / "all", dataset, model, seed)
    set_method(config, method, side)
    rate = 1e-3 if method == "dino" else 3e-3
    config.optim.update(epochs=0.0, total_steps=PACED, peak_lr=rate, warmup_epochs=0.0)
    config.run.update(log_steps=PACED // 2, eval_epochs=0.0, eval_steps=PACED)
    config.run.update(checkpoint_epochs=0.0, checkpoint_steps=PACED)
    name = f"{model}, {method}, {seed}"
    paced = folder / f"{name}, paced"
    train_and_evaluate(config, paced)
    logged = [json.loads(line) for line in (paced / "metrics.jsonl").read_text().splitlines()]
    speed = next(row["images_per_second"] for row in reversed(logged) if "train/loss" in row)
    steps = max(PACED, int(60 * minutes * speed / config.data.batch_size))
    config.optim.update(total_steps=steps, warmup_steps=steps // 20)
    config.run.update(log_steps=max(1, steps // 20), eval_steps=steps, checkpoint_steps=steps)
    config.pretrain.probe_every = 1
    begun = time.monotonic()
    print(name, train_and_evaluate(config, folder / f"{name}, {minutes}"), sep=": ", flush=True)
    metrics = load_metadata(folder / f"{name}, {minutes}").metrics
    return {
        "model": model,
        "method": method,
        "seed": seed,
        "steps": steps,
        "minutes": (time.monotonic() - begun) / 60,
        "knn": metrics["test/knn_accuracy"],
        "linear": metrics["test/linear_accuracy"],
    }


def finetune(
    folder: Path, dataset: str, model: str, start: Path | None, *, seed: int, peak_lr: float
) -> Result:
    """Trains on the few labelled images, from weights or from scratch; tested on other images."""
    config = make_config(folder / f"few_{seed}", dataset, model, seed)
    config.data.test_split = "validation"
    config.init_from = None if start is None else str(start)
    config.augment.label_smoothing = 0.1
    config.optim.update(
        peak_lr=peak_lr, epochs=0.0, total_steps=STEPS, warmup_epochs=0.0, warmup_steps=STEPS // 10
    )
    config.run.update(
        eval_epochs=0.0, eval_steps=STEPS, checkpoint_epochs=0.0, checkpoint_steps=STEPS
    )
    begun = f"{model}, {SCRATCH}, {seed}" if start is None else start.name
    done = train_and_evaluate(config, folder / f"{begun}, {peak_lr}")
    print(f"{begun}, {peak_lr}: {done}", flush=True)
    return done


def test_accuracy(weights: Path, dataset: Path) -> float:
    """Returns the share of a dataset's test images that a run's weights name rightly."""
    model, variables = load_pretrained(weights)
    preprocess = load_metadata(weights).preprocess
    source = open_source(str(dataset), split="test")
    batches = make_eval_batches(source, batch_size=240, preprocess=preprocess)
    predict = make_predict(model, variables["params"], preprocess)
    logits, labels = predict_dataset(predict, batches)
    return float((logits.argmax(-1) == labels).mean())


def measure(folder: Path, dataset: str, model: str, begins: str, *, seeds: int) -> dict[str, Any]:
    """Returns a row of the table: accuracies in [0, 1], one a seed; those of each rate, too."""
    starts = [
        None if begins == SCRATCH else pretrain(folder, dataset, model, begins, seed=seed)
        for seed in range(seeds)
    ]
    runs = {
        peak_lr: [
            finetune(folder, dataset, model, start, seed=seed, peak_lr=peak_lr)
            for seed, start in enumerate(starts)
        ]
        for peak_lr in PEAK_LRS
    }
    validated = {peak_lr: [run.test_accuracy for run in done] for peak_lr, done in runs.items()}
    chosen = max(PEAK_LRS, key=lambda peak_lr: statistics.mean(validated[peak_lr]))
    return {
        "model": model,
        "begins": begins,
        "validated": validated,
        "peak_lr": chosen,
        "tested": [test_accuracy(run.weights, folder / "all") for run in runs[chosen]],
    }


def shorten() -> None:
    """Sets constants so that a row of the digits takes seconds; its numbers say nothing."""
    global STEPS, VALIDATED, PEAK_LRS
    STEPS, VALIDATED, PEAK_LRS = 2, 100, PEAK_LRS[:1]
    DATASETS["digits"] = (16, 0.1)
    VIT["depth"] = METHODS["mae"]["pretrain"]["decoder_depth"] = 1


def as_table(rows: list[dict[str, Any]]) -> str:
    """Returns rows as a table of docs/pretrain.md."""
    lines = [
        "| model | begins | rate | validation | test | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        validated, tested = (
            [100 * accuracy for accuracy in accuracies]
            for accuracies in (row["validated"][row["peak_lr"]], row["tested"])
        )
        spread = f" ± {statistics.stdev(tested):.1f}" if len(tested) > 1 else ""
        begins = row["begins"]
        cells = (
            row["model"],
            begins if begins == SCRATCH else f"from `{begins}`",
            f"{row['peak_lr']}",
            f"{statistics.mean(validated):.1f} %",
            f"{statistics.mean(tested):.1f}{spread} %",
            ", ".join(f"{accuracy:.1f}" for accuracy in tested),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def as_probes(rows: list[dict[str, Any]]) -> str:
    """Returns rows of `probe` as a table of docs/pretrain.md."""
    lines = [
        "| model | method | seed | steps | minutes | neighbours | linear probe |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | `{row['method']}` | {row['seed']} | {row['steps']:,} | "
            f"{row['minutes']:.1f} | {100 * row['knn']:.1f} % | {100 * row['linear']:.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints the table."""
    global FASHION
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=DATASETS, default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="folder in which stopped runs resume")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--source", type=Path, default=FASHION, help="folder of Fashion-MNIST")
    parser.add_argument("--probe", choices=METHODS, nargs="+", help="methods of the ViT to probe")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each method, with --probe")
    parser.add_argument("--smoke", action="store_true", help="one row, of two steps")
    args = parser.parse_args()
    table, FASHION = ROWS, args.source
    if args.smoke:
        shorten()
        table, args.seeds = ROWS[1:2], 1
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.folder or Path(scratch)) / args.dataset
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        begun = time.monotonic()
        write_datasets(folder, args.dataset, args.seeds)
        if args.probe:
            each = [(method, seed) for seed in range(args.seeds) for method in args.probe]
            how = {"minutes": args.minutes}
            rows = [probe(folder, args.dataset, "ViT", m, seed=seed, **how) for m, seed in each]
        else:
            rows = [measure(folder, args.dataset, *row, seeds=args.seeds) for row in table]
    print(as_probes(rows) if args.probe else as_table(rows))
    print(f"{args.dataset}, {args.seeds} seeds, {time.monotonic() - begun:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
