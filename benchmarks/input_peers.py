"""Workers of benchmarks/input.py, one library per process: requests on stdin, answers in JSON.

python benchmarks/input_peers.py ours|grain|torch|tf FOLDER [BIG_VISION]

A question is {"level": name} for the CPU time of one image in one thread, or {"workers": n} for the
rate of the whole pipeline.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SIZE, BATCH = 224, 64
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
MEAN = (0.485, 0.456, 0.406)

Level = Callable[[list[bytes]], None]  # does its work on every image
Levels = dict[str, Level]


def ours(folder: Path) -> tuple[Levels, Callable[[int], Iterator]]:
    """The transforms and the pipeline of vitswin_jax."""
    from vitswin_jax.core.heap import keep_freed_images
    from vitswin_jax.data.augment.transforms import Preprocess, TrainTransform
    from vitswin_jax.data.decode import decode_image
    from vitswin_jax.data.pipeline import make_train_iterator
    from vitswin_jax.data.sources.files import FileSource

    keep_freed_images()  # as the pipeline does

    def each(work: Callable) -> Level:
        return lambda images: [work(image, seed) for seed, image in enumerate(images)]

    def train(**options: object) -> Level:
        transform = TrainTransform((SIZE, SIZE), mean=MEAN, **options)
        return each(lambda image, seed: transform(image, np.random.default_rng(seed)))

    preprocess = Preprocess((SIZE, SIZE))
    levels = {
        "decode": each(lambda image, seed: decode_image(image)),
        "crop, flip": train(),
        "crop, flip (Pillow's pixels)": train(resizer="pillow"),
        RAND_AUGMENT: train(rand_augment=RAND_AUGMENT),
        "randaug(2,15)": train(rand_augment="randaug(2,15)"),
        "AutoAugment original": train(auto_augment="original"),
        "3-Augment, jitter 0.3": train(auto_augment="3a", color_jitter=0.3),
        "jitter 0.4": train(color_jitter=0.4),
        "evaluation": each(lambda image, seed: preprocess.image(decode_image(image))),
    }

    def pipeline(workers: int) -> Iterator:
        # As long as a dataset: the order of so few images alone would take Grain as long as one.
        files = [(str(path.relative_to(folder)), 0) for path in _files(folder)]
        source = FileSource(str(folder), files * 1000, ("one",), "benchmark")
        transform = TrainTransform((SIZE, SIZE), mean=MEAN, rand_augment=RAND_AUGMENT)
        return make_train_iterator(
            source, batch_size=BATCH, transform=transform, seed=0, workers=workers
        )

    return levels, pipeline


def grain(folder: Path) -> tuple[Levels, Callable[[int], Iterator]]:
    """Our transforms and batches, loaded by Grain's own processes."""
    import grain
    from absl import flags

    from vitswin_jax.data import pipeline

    def iterate(batches: grain.MapDataset, workers: int, threads: int | None) -> Iterator:
        threads = threads or max(1, pipeline.cores() // max(1, workers))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
        processes = grain.MultiprocessingOptions(num_workers=workers)
        loaded = batches.to_iter_dataset(options)
        return iter(loaded.mp_prefetch(processes) if workers else loaded)

    flags.FLAGS.mark_as_parsed()  # Grain's processes read its flags
    pipeline._iterate = iterate
    return {}, ours(folder)[1]


def torch(folder: Path) -> tuple[Levels, Callable[[int], Iterator]]:
    """Pillow and timm's transforms, and PyTorch's DataLoader."""
    import torch
    from PIL import Image

    # torchvision has no build for every torch; none of its compiled operators is needed here.
    register = torch.library.register_fake
    torch.library.register_fake = lambda name, *rest, **more: (
        (lambda function: function)
        if str(name).startswith("torchvision::")
        else register(name, *rest, **more)
    )
    from timm.data.transforms_factory import transforms_imagenet_eval, transforms_imagenet_train

    torch.set_num_threads(1)

    def read(image: bytes) -> Image.Image:
        return Image.open(io.BytesIO(image)).convert("RGB")

    def each(work: Callable) -> Level:
        return lambda images: [work(read(image)) for image in images]

    def forgiving(transform: Callable) -> Callable:
        """Pillow of today refuses to posterize to 0 bits, for which timm asks now and then."""

        def apply(image: Image.Image) -> object:
            while True:
                try:
                    return transform(image)
                except ValueError:
                    continue

        return apply

    def train(color_jitter: float | None = None, auto_augment: str | None = None) -> Callable:
        how = {"interpolation": "bicubic", "mean": MEAN, "use_prefetcher": True}
        how |= {"color_jitter": color_jitter, "auto_augment": auto_augment}
        return forgiving(transforms_imagenet_train(SIZE, **how))

    evaluate = transforms_imagenet_eval(SIZE, interpolation="bicubic", use_prefetcher=True)
    levels = {
        "decode": each(lambda image: image.load()),
        "crop, flip": each(train()),
        "crop, flip (Pillow's pixels)": each(train()),
        RAND_AUGMENT: each(train(auto_augment=RAND_AUGMENT)),
        "AutoAugment original": each(train(auto_augment="original")),
        "3-Augment, jitter 0.3": each(train(color_jitter=0.3, auto_augment="3a")),
        "jitter 0.4": each(train(color_jitter=0.4)),
        "evaluation": each(evaluate),
    }
    transform = train(auto_augment=RAND_AUGMENT)

    class Files(torch.utils.data.Dataset):
        paths = _files(folder)

        def __len__(self) -> int:
            return 1 << 30

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            path = self.paths[index * 7919 % len(self.paths)]
            return transform(read(path.read_bytes())), 0

    def pipeline(workers: int) -> Iterator:
        return iter(torch.utils.data.DataLoader(Files(), batch_size=BATCH, num_workers=workers))

    return levels, pipeline


def tf(folder: Path, big_vision: str | None = None) -> tuple[Levels, Callable[[int], Iterator]]:
    """tf.data with decode_and_crop_jpeg, and big_vision's own RandAugment where it is at hand."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")

    def decode(data):
        return tf.image.decode_jpeg(data, channels=3)

    def crop(data):
        start, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.zeros((1, 0, 4), tf.float32),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            use_image_if_no_bounding_boxes=True,
        )
        box = tf.stack([start[0], start[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(data, box, channels=3)
        image = tf.image.random_flip_left_right(tf.image.resize(image, (SIZE, SIZE), "bicubic"))
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    def jitter(image):
        image = tf.image.random_brightness(tf.image.random_contrast(image, 0.6, 1.4), 0.4)
        return tf.image.random_saturation(image, 0.6, 1.4)

    def evaluate(data):
        image = tf.image.resize(decode(data), (256, 341), "bicubic", antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(image[16:240, 58:282]), 0, 255), tf.uint8)

    work = {"decode": decode, "crop, flip": crop, "evaluation": evaluate}
    work["jitter 0.4"] = lambda data: jitter(crop(data))
    if big_vision:
        where = ROOT / "tests" / "goldens" / "write_big_vision.py"
        spec = importlib.util.spec_from_file_location("write_big_vision", where)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        augment = module.load(big_vision).distort_image_with_randaugment
        work["randaug(2,15)"] = lambda data: augment(crop(data), 2, 15)

    def mapped(data, function, threads: int):
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        options.autotune.enabled = False
        return data.with_options(options).map(function, num_parallel_calls=threads)

    def each(function: Callable) -> Level:
        endless: list[Iterator] = []  # made once: what starting costs is no image's

        def level(images: list[bytes]) -> None:
            if not endless:
                data = tf.data.Dataset.from_tensor_slices(images).repeat()
                endless.append(iter(mapped(data, function, 1)))
            for _ in images:
                next(endless[0])

        return level

    def pipeline(workers: int) -> Iterator:
        names = [str(path) for path in _files(folder)]
        data = tf.data.Dataset.from_tensor_slices(names).shuffle(len(names)).repeat()
        function = work.get("randaug(2,15)", crop)
        threads = max(1, workers)
        data = mapped(data, lambda name: function(tf.io.read_file(name)), threads)
        return iter(data.batch(BATCH).prefetch(2))

    work["crop, flip (Pillow's pixels)"] = crop
    return {name: each(function) for name, function in work.items()}, pipeline


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.*") if path.is_file())


def cost(level: Level, images: list[bytes]) -> dict[str, float]:
    """Returns the CPU milliseconds of an image."""
    start = time.process_time()
    level(images)
    return {"ms": (time.process_time() - start) / len(images) * 1e3}


def _of_processes(pids: list[int], what: str) -> list[float]:
    """Returns CPU seconds or peak resident megabytes of processes, from Linux's /proc."""
    if what == "cpu":
        ticks = os.sysconf("SC_CLK_TCK")
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
        return [(int(stat[11]) + int(stat[12])) / ticks for stat in stats]
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return [int(text.partition("VmHWM:")[2].split()[0]) / 1024 for text in texts]


def rate(batches: Iterator, *, count: int) -> dict[str, float]:
    """Returns images/s, CPU milliseconds of an image over all processes, and their peak memory."""
    for _ in range(4):  # workers have started and every buffer is full
        next(batches)
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    cpu, start = sum(_of_processes(pids, "cpu")), time.perf_counter()
    images = sum(len(next_batch) for next_batch in _images(batches, count))
    wall = time.perf_counter() - start
    cpu = sum(_of_processes(pids, "cpu")) - cpu
    memory = _of_processes(pids, "memory")
    return {
        "rate": images / wall,
        "ms": cpu / images * 1e3,
        "rss": max(memory[1:], default=math.nan),
        "rss_main": memory[0],
    }


def _images(batches: Iterator, count: int) -> Iterator:
    for batch in itertools.islice(batches, count):
        if isinstance(batch, dict):
            yield batch["image"]
        else:
            yield batch[0] if isinstance(batch, list | tuple) else batch


def main(name: str, folder: str, *rest: str) -> None:
    """Answers questions until stdin ends."""
    levels, pipeline = globals()[name](Path(folder), *rest)
    images = [path.read_bytes() for path in _files(Path(folder))]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        question = json.loads(line)
        if "workers" in question:
            answer = rate(pipeline(question["workers"]), count=question["batches"])
        elif question["level"] in levels:
            answer = cost(levels[question["level"]], images)
        else:
            answer = {}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
