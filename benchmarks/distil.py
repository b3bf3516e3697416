"""Neighbours of a student's features: taught by a teacher's, and trained by labels from scratch.

python benchmarks/distil.py --teacher WEIGHTS [--dataset DATASET] [--size 28] [--steps 600]
                            [--seeds 3] [--folder DIR] [--json FILE] [--smoke]

A ViT and a Swin of the digits' recipe learn the features of WEIGHTS, any that `load_pretrained`
reads, from the training images without labels; the same models learn the labels from scratch, in
equally many steps. Of both the 20 nearest neighbours among the training images name the test
images' classes. Without a teacher a ViT is trained first, by labels. `benchmarks/speedrun.py`
writes Fashion-MNIST as a folder.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitswin_jax.data.pipeline import make_eval_batches
from vitswin_jax.data.sources.open import open_source
from vitswin_jax.evaluate.evaluation import make_features, predict_dataset
from vitswin_jax.evaluate.probes import NEIGHBOURS, Features, knn_accuracies
from vitswin_jax.trainer import train_and_evaluate
from vitswin_jax.weights.open import open_pretrained

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

FAMILIES = {"ViT": "vit", "Swin": "swin"}
STARTS = ("from scratch", "taught")


def set_length(config: ConfigDict, args: argparse.Namespace) -> None:
    """Sets a run's images and its length: it is evaluated and saved at its end."""
    steps = args.steps
    config.data.dataset = args.dataset
    config.model.img_size = args.size
    config.optim.update(epochs=0.0, total_steps=steps, warmup_epochs=0.0, warmup_steps=steps // 10)
    config.run.update(log_steps=max(1, steps // 10), eval_epochs=0.0, eval_steps=steps)
    config.run.update(checkpoint_epochs=0.0, checkpoint_steps=steps)
    config.pretrain.probe_every = 0


def train_teacher(folder: Path, args: argparse.Namespace) -> Path:
    """Returns the folder of a ViT that has learned the labels."""
    from configs import digits

    config = digits.get_config("vit")
    set_length(config, args)
    train_and_evaluate(config, folder / "teacher")
    return folder / "teacher"


def neighbours(weights: Path, dataset: str) -> float:
    """Returns the accuracy of nearest neighbours of a run's features, in [0, 1]."""
    opened = open_pretrained(weights)
    read = make_features(opened.model, opened.variables["params"], opened.preprocess)
    splits, classes = [], 0
    for split in ("train", "test"):
        source = open_source(dataset, split=split)
        classes = len(source.class_names)
        batches = make_eval_batches(source, batch_size=250, preprocess=opened.preprocess)
        splits.append(Features(*predict_dataset(read, batches)))
    return knn_accuracies(*splits, num_classes=classes, ks=(NEIGHBOURS,))[NEIGHBOURS]


def measure(folder: Path, model: str, start: str, args: argparse.Namespace) -> dict[str, Any]:
    """Returns a row of the table: accuracies of neighbours in [0, 1], one for each seed."""
    from configs import distill_digits

    accuracies = []
    for seed in range(args.seeds):
        config = distill_digits.get_config(FAMILIES[model])
        set_length(config, args)
        config.seed = seed
        config.distill.teacher = str(args.teacher)
        if start != "taught":
            config.distill.update(features=None, teacher=None)
        workdir = folder / f"{model}, {start}, {seed}"
        train_and_evaluate(config, workdir)
        accuracies.append(neighbours(workdir, args.dataset))
        print(f"{workdir.name}: {100 * accuracies[-1]:.1f} %", flush=True)
    return {"model": model, "start": start, "steps": args.steps, "knn": accuracies}


def as_table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a table of Markdown."""
    lines = [
        "| model | start | steps | neighbours | each seed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        each = [100 * accuracy for accuracy in row["knn"]]
        spread = f" ± {statistics.stdev(each):.1f}" if len(each) > 1 else ""
        lines.append(
            f"| {row['model']} | {row['start']} | {row['steps']:,} | "
            f"{statistics.mean(each):.1f}{spread} % | {', '.join(f'{x:.1f}' for x in each)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", help="weights; without, a ViT is trained by labels")
    parser.add_argument("--dataset", default="digits", help="with a train and a test split")
    parser.add_argument("--size", type=int, default=16, help="pixels a side, for the students")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="folder in which stopped runs resume")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a ViT, of two steps")
    args = parser.parse_args()
    models = list(FAMILIES)
    if args.smoke:
        models, args.steps, args.seeds = models[:1], 2, 1
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        args.teacher = args.teacher or train_teacher(folder, args)
        rows = [measure(folder, model, start, args) for model in models for start in STARTS]
    print(as_table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
