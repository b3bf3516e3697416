"""The cost of a small image in the input pipeline, by epoch and threads.

python benchmarks/small_images.py [--side 28] [--images 4000] [--threads 1 2 4] [--smoke]

Prints the CPU time per image, in microseconds, of a pipeline that shifts and flips grey PNGs of
`--side` pixels. In "decoded each time" it keeps no pixels, as it does of large images; in "first
epoch" and "later" it is what a run has (vitswin_jax.data.small), but for the number of threads: a
run has one. The numbers are in docs/performance.md.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from vitswin_jax.data import small
from vitswin_jax.data.augment.transforms import TrainTransform
from vitswin_jax.data.pipeline import make_train_iterator
from vitswin_jax.data.sources.open import open_source

BATCH = 128


def write_images(folder: Path, count: int, side: int) -> None:
    """Writes grey squares that are as noisy as a picture of a garment."""
    rng = np.random.default_rng(0)
    for number in range(count):
        levels = 40 * rng.normal(size=(side, side)) + 255 * np.hanning(side)
        path = folder / "train" / "ab"[number % 2] / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(path)


def microseconds(folder: Path, side: int, threads: int, *, epochs: int = 3) -> list[float]:
    """Returns the CPU time of an image in each epoch."""
    transform = TrainTransform((side, side), crop="shift", shift=0.1, mean=(0.5,))
    source = open_source(str(folder), split="train")
    steps = len(source) // BATCH
    batches = make_train_iterator(
        source, batch_size=BATCH, transform=transform, seed=0, threads=threads
    )
    times = [time.process_time()]
    for _ in range(epochs):
        for _ in itertools.islice(batches, steps):
            pass
        times.append(time.process_time())
    batches.close()
    return [1e6 * (end - begin) / (steps * BATCH) for begin, end in itertools.pairwise(times)]


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=28, help="of an image, in pixels")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--smoke", action="store_true", help="few images and one thread")
    args = parser.parse_args()
    if args.smoke:
        args.images, args.threads = BATCH, [1]
    print(
        "| threads | decoded each time | first epoch | later |",
        "| --- | --- | --- | --- |",
        sep="\n",
    )
    with tempfile.TemporaryDirectory() as scratch:
        write_images(Path(scratch), args.images, args.side)
        for threads in args.threads:
            first, *_, later = microseconds(Path(scratch), args.side, threads)
            each, small.EACH = small.EACH, 0
            *_, plain = microseconds(Path(scratch), args.side, threads)
            small.EACH = each
            print(f"| {threads} | {plain:.0f} | {first:.0f} | {later:.0f} |", flush=True)


if __name__ == "__main__":
    main()
