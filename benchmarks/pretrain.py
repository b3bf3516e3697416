"""What pre-training without labels is worth with 10 labelled images a class: digits, Fashion-MNIST.

python benchmarks/pretrain.py [--dataset fashion] [--seeds 3] [--folder DIR] [--json FILE]

A tiny ViT and a tiny Swin learn by SimMIM, the ViT by MAE as well, from all training images, whose
labels they never see; then each is fine-tuned on 10 images a class, and so is the same model from
scratch, in equally many steps. Each seed has images, parameters, masks and order of its own. Both
ends are the trainer's runs, by train_and_evaluate. Fashion-MNIST is that of Debian's
dataset-fashion-mnist. The table, of mean and deviation over seeds, is in docs/pretrain.md.
"""

import argparse
import gzip
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from sklearn.datasets import load_digits

from configs import base
from vitswin_jax.train.loop import train_and_evaluate

FASHION = Path("/usr/share/datasets/fashion-mnist")
A_CLASS, STEPS = 10, 300  # labelled images, and steps on them
UNLABELLED, TESTED = 10_000, 2_000  # at most
VIT = {"patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3, "global_pool": "avg"}
SWIN = {"patch_size": 2, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "init_std": 0.2}
SIMMIM = {"method": "simmim", "mask_patch": 4, "mask_ratio": 0.6}
MAE = {
    "method": "mae",
    "mask_ratio": 0.6,
    "norm_pix": False,
    "decoder_dim": 48,
    "decoder_depth": 2,
    "decoder_heads": 4,
}
DATASETS = {  # name -> (image size, window, epochs of pre-training)
    "digits": (16, 4, 60.0),
    "fashion": (28, 7, 10.0),
}
# The best on the first seed of the digits, of those in docs/pretrain.md: (scratch, from weights).
PEAK_LRS = {"vit": (6e-3, 3e-3), "swin": (5e-3, 5e-3)}
CASES = (("vit", SIMMIM), ("vit", MAE), ("swin", SIMMIM))


def read_images(dataset: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns images uint8 (n, h, w) and labels of the training and of the test split."""
    if dataset == "digits":
        bunch = load_digits()
        images, test = (bunch.images * 255 / 16).astype(np.uint8), np.arange(1797) % 4 == 0
        return images[~test], bunch.target[~test], images[test], bunch.target[test]
    parts = []
    for name in ("train", "t10k"):
        for kind, offset in (("images-idx3", 16), ("labels-idx1", 8)):
            data = gzip.decompress((FASHION / f"{name}-{kind}-ubyte.gz").read_bytes())
            array = np.frombuffer(data, np.uint8, offset=offset)
            parts.append(array.reshape(-1, 28, 28) if offset == 16 else array)
    return parts[0][:UNLABELLED], parts[1][:UNLABELLED], parts[2][:TESTED], parts[3][:TESTED]


def write_split(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes images as a folder of class folders."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert("RGB").save(path)


def write_datasets(folder: Path, dataset: str, seeds: int) -> None:
    """Writes a dataset of all training images, and for each seed one of a few of each class."""
    images, labels, test_images, test_labels = read_images(dataset)
    write_split(folder / "all" / "train", images, labels)
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(labels))
        few = np.concatenate([order[labels[order] == c][:A_CLASS] for c in range(10)])
        write_split(folder / f"few_{seed}" / "train", images[few], labels[few])
    for name in ("all", *(f"few_{seed}" for seed in range(seeds))):
        write_split(folder / name / "test", test_images, test_labels)


def make_config(folder: Path, dataset: str, family: str, seed: int) -> ConfigDict:
    """Returns what a family's pre-training and fine-tuning share."""
    size, window, _ = DATASETS[dataset]
    config = base.get_config()
    fields = VIT if family == "vit" else SWIN | {"window_size": window}
    with config.unlocked():
        config.model = base.model_section(family, img_size=size, **fields)
    config.seed = seed
    config.data.update(dataset=str(folder), batch_size=50, eval_batch_size=250)
    config.preprocess.update(mean=(0.5,) * 3, std=(0.5,) * 3, crop_mode="squash", crop_fraction=1.0)
    config.augment.update(crop="shift", shift=0.1, flip=dataset == "fashion")
    if dataset == "digits":
        config.augment.update(rotate=12.0, zoom=0.1)
    config.optim.max_grad_norm = 1.0
    config.pretrain.probe_every = 0
    return config


def pretrain(config: ConfigDict, dataset: str, method: dict, workdir: Path):
    """Pre-trains on all images, without labels; returns the run's result."""
    epochs = DATASETS[dataset][2]
    config.pretrain.update(**method)
    config.optim.update(epochs=epochs, warmup_epochs=epochs / 20, peak_lr=3e-3)
    config.run.update(eval_epochs=epochs, checkpoint_epochs=epochs)
    return train_and_evaluate(config, workdir)


def finetune(config: ConfigDict, start: Path | None, workdir: Path):
    """Trains on the few labelled images, from weights or from scratch; returns the result."""
    config.init_from = None if start is None else str(start)
    config.optim.peak_lr = PEAK_LRS[config.model.name][start is not None]
    config.augment.label_smoothing = 0.1
    config.optim.update(epochs=0.0, total_steps=STEPS, warmup_epochs=0.0, warmup_steps=STEPS // 10)
    config.run.update(
        eval_epochs=0.0, eval_steps=STEPS, checkpoint_epochs=0.0, checkpoint_steps=STEPS
    )
    return train_and_evaluate(config, workdir)


def measure(dataset: str, seeds: int, folder: Path) -> list[dict]:
    """Returns a row for each model and method: test accuracies in [0, 1], one a seed."""
    write_datasets(folder, dataset, seeds)
    rows = {}
    for seed in range(seeds):
        runs, few = folder / f"runs_{seed}", folder / f"few_{seed}"
        for family, method in CASES:
            name = f"{family}_{method['method']}"
            config = make_config(folder / "all", dataset, family, seed)
            print(seed, pretrain(config, dataset, method, runs / name), flush=True)
        starts = [(family, None) for family in ("vit", "swin")]
        starts += [(family, method["method"]) for family, method in CASES]
        for family, method in starts:
            config = make_config(few, dataset, family, seed)
            start = None if method is None else runs / f"{family}_{method}"
            done = finetune(config, start, runs / f"{family}_{method}_finetuned")
            print(seed, method, done, flush=True)
            rows.setdefault((family, method or "from scratch"), []).append(done.test_accuracy)
    return [
        {"model": family, "from": name, "accuracies": found}
        for (family, name), found in rows.items()
    ]


def as_table(rows: list[dict]) -> str:
    """Returns rows as the table of docs/pretrain.md."""
    lines = ["| model | begins | test accuracy | seeds |", "| --- | --- | --- | --- |"]
    for row in rows:
        found = [100 * accuracy for accuracy in row["accuracies"]]
        spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
        each = ", ".join(f"{accuracy:.1f}" for accuracy in found)
        lines.append(
            f"| {row['model']} | {row['from']} | {statistics.mean(found):.1f}{spread} % | {each} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=DATASETS, default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where runs go on that were stopped")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        begun = time.monotonic()
        rows = measure(args.dataset, args.seeds, folder / args.dataset)
    print(as_table(rows))
    print(f"{args.dataset}, {args.seeds} seeds, {time.monotonic() - begun:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
