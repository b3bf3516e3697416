"""Batches from a source: shuffled without end to train on, each example once to evaluate."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from vitswin_jax.core.choices import one_of
from vitswin_jax.core.cores import cores
from vitswin_jax.core.heap import keep_freed_images
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import Batch, Source, UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.data.augment.views import MultiCrop
from vitswin_jax.data.order import AUGMENT, Key, TrainKeys, eval_keys, stream
from vitswin_jax.data.small import SmallImages
from vitswin_jax.data.workers import WorkerBatches

log = logger(__name__)

_MAX_THREADS = 8
FEW, MOST = 10_000, 32


@runtime_checkable
class Transform(Protocol):
    """From an encoded image to an augmented one, uint8 (h, w, c), or to views of it by name."""

    @property
    def img_size(self) -> Sequence[int]:
        """The height and width of what it returns."""

    @property
    def mean(self) -> Sequence[float]:
        """A number for each channel of what it returns."""

    def fitted(self, img_size: Sequence[int]) -> Transform:
        """Returns the same for another image size."""

    def __call__(self, image: Image, rng: np.random.Generator, *, name: str) -> Any:
        """Returns the augmented image or views; all randomness comes from `rng`."""


def shapes_of(transform: Transform) -> Mapping[str, tuple[int, ...]]:
    """Returns the shape of each array of pixels that a transform gives, by its key in a batch."""
    if isinstance(transform, MultiCrop):
        return transform.shapes
    return {"image": (*transform.img_size, len(transform.mean))}


def workers_for(workers: int, *, platform: str, records: int) -> int:
    """Returns the number of worker processes that a run's `workers` means.

    -1 is automatic: a process per core, at most `MOST`, where an accelerator computes; none, but
    threads, where the CPU computes, which has no core to spare, and for fewer than `FEW` records,
    which threads have loaded before processes have started. Raises UserError below -1.
    """
    if workers < -1:
        raise UserError(f"workers={workers} must be -1 (automatic), 0 (threads) or more.")
    if workers != -1:
        return workers
    return 0 if platform == "cpu" or records < FEW else min(cores(), MOST)


def make_train_iterator(
    source: Source,
    *,
    batch_size: int,
    transform: Transform,
    seed: int,
    start_batch: int = 0,
    num_batches: int | None = None,
    host_index: int = 0,
    host_count: int = 1,
    workers: int = 0,
    threads: int | None = None,
    on_unreadable: str = "raise",
    repeats: int = 1,
) -> BatchIterator:
    """Returns this host's rows of the global batches from `start_batch` on.

    The stream is every epoch's permutation of the records, one after the other without a
    gap (of a mixture, one such stream for each part, drawn from by the parts' shares), cut
    into batches of `batch_size` over all hosts; it is a function of the source,
    `seed` and `batch_size` alone, whatever the hosts, `workers` (processes) or `threads`,
    and it ends only after `num_batches`. Augmentation depends on (seed, epoch, record).
    An unreadable image raises, or with "skip" is logged and has a mask of 0.

    With `repeats`, images come so often in a row, each time augmented anew (arXiv:1902.05509),
    and an epoch keeps its length: it shows the first 1 / repeats of its permutation, as DeiT's
    RASampler does.

    Its `close()` ends the workers early (`contextlib.closing`). Raises UserError
    where the hosts do not divide the batch, or there are no records.
    """
    rows = _host_rows(source, batch_size, host_index, host_count)
    if seed < 0:
        raise UserError(f"seed={seed} must be 0 or above.")
    one_of("on_unreadable", on_unreadable, ("raise", "skip"))
    if repeats < 1:
        raise UserError(f"repeats={repeats} must be 1 (off) or more.")
    keys = TrainKeys(stream(source, seed), len(source), batch_size, rows, repeats)
    augment = partial(_augment, transform, seed)
    small = SmallImages(source, len(transform.mean), processes=max(1, workers))
    load = _LoadBatch(small, augment, shapes_of(transform), on_unreadable)
    stop = sys.maxsize // batch_size if num_batches is None else start_batch + num_batches
    batches = grain.MapDataset.range(start_batch, stop).map(keys).map(load)
    return _iterate(batches, workers, small.threads() if threads is None else threads)


def make_eval_batches(
    source: Source,
    *,
    batch_size: int,
    preprocess: Preprocess,
    host_index: int = 0,
    host_count: int = 1,
    workers: int = 0,
    threads: int | None = None,
) -> EvalBatches:
    """Returns this host's rows of batches that hold every record exactly once, in order.

    Row r of global batch g is record g * batch_size + r. The last batch is filled up with
    black images, label 0 and mask 0, so all batches, of all hosts, have one shape and one
    number. An unreadable image raises UserError: an accuracy is of the whole split.
    """
    rows = _host_rows(source, batch_size, host_index, host_count)
    keys = partial(eval_keys, len(source), batch_size, rows)
    shapes = {"image": (*preprocess.img_size, preprocess.channels)}
    small = SmallImages(source, preprocess.channels, processes=max(1, workers))
    load = _LoadBatch(small, partial(_evaluate, preprocess), shapes, "raise")
    batches = grain.MapDataset.range(-(-len(source) // batch_size)).map(keys).map(load)
    return EvalBatches(batches, workers, small.threads() if threads is None else threads)


@dataclass(frozen=True)
class EvalBatches:
    """The batches of one evaluation; may be iterated over any number of times."""

    _batches: grain.MapDataset
    _workers: int
    _threads: int | None

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> BatchIterator:
        return _iterate(self._batches, self._workers, self._threads)


def _host_rows(source: Source, batch_size: int, host_index: int, host_count: int) -> range:
    """Returns the rows of a global batch that one host loads."""
    if not len(source):
        raise UserError(f"{source.name}: has no examples.")
    if batch_size < 1 or batch_size % host_count:
        raise UserError(
            f"batch_size={batch_size} must be a multiple of the {host_count} host(s), above 0."
        )
    rows = batch_size // host_count
    return range(host_index * rows, (host_index + 1) * rows)


def _iterate(batches: grain.MapDataset, workers: int, threads: int | None) -> BatchIterator:
    """Returns an iterator over batches, loaded ahead of time."""
    workers = min(workers, len(batches))
    if threads is None:  # as many in all as there are cores
        threads = min(_MAX_THREADS, max(1, cores() // max(1, workers)))
    if workers:
        return WorkerBatches(partial(_load_every, batches, threads), workers)
    keep_freed_images()
    return ThreadBatches(_load_every(batches, threads))


def _load_every(
    batches: grain.MapDataset, threads: int, first: int = 0, step: int = 1
) -> grain.DatasetIterator:
    """Returns an iterator over every `step`-th batch, loaded ahead of time by threads."""
    # Grain counts batches here, and would hold 500 of them.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
    return iter(batches[first::step].to_iter_dataset(options))


class ThreadBatches(Iterator[Batch]):
    """Batches loaded ahead of time, by threads that `close` or Python's exit ends."""

    def __init__(self, batches: grain.DatasetIterator) -> None:
        self._left: list[Iterator[Batch]] = [batches]
        # Emptied, the list frees Grain's iterator while the modules it needs still stand.
        self.close = weakref.finalize(self, _close, self._left, batches)

    def __next__(self) -> Batch:
        try:
            return next(self._left[0])
        except (StopIteration, IndexError):  # at the end, and after it
            self.close()
            raise StopIteration from None


def _close(left: list[Iterator[Batch]], batches: grain.DatasetIterator) -> None:
    left.clear()
    batches.close()


BatchIterator = ThreadBatches | WorkerBatches


Image = bytes | np.ndarray
"""An encoded image, or uint8 (h, w, c)."""

Pixels = Mapping[str, np.ndarray]


def _augment(transform: Transform, seed: int, image: Image, key: Key, name: str) -> Pixels:
    # Counters 2**64 apart never meet: the lowest word counts the numbers drawn.
    philox = np.random.Philox(
        key=np.array([seed, AUGMENT], np.uint64),
        counter=np.array([0, key.copy, key.epoch, key.record], np.uint64),
    )
    given = transform(image, np.random.Generator(philox), name=name)
    return given if isinstance(given, Mapping) else {"image": given}


def _evaluate(preprocess: Preprocess, image: Image, key: Key, name: str) -> Pixels:
    del key
    return {"image": preprocess.image(preprocess.decode(image, name=name))}


@dataclass(frozen=True)
class _LoadBatch:
    """Loads the records that `keys` name; the rows of None and of skipped images stay blank."""

    small: SmallImages
    transform: Callable[[Image, Key, str], Pixels]
    shapes: Mapping[str, tuple[int, ...]]  # of an image: (height, width, channels), or of its views
    on_unreadable: str

    def __call__(self, keys: Sequence[Key | None]) -> Batch:
        batch = Batch(
            image=np.zeros((len(keys), *self.shapes["image"]), np.uint8),
            label=self._no_labels(len(keys)),
            mask=np.zeros(len(keys), np.float32),
        )
        if "local" in self.shapes:
            batch["local"] = np.zeros((len(keys), *self.shapes["local"]), np.uint8)
        for row, key in enumerate(keys):
            if key is not None:
                self._load(batch, row, key)
        return batch

    def _no_labels(self, rows: int) -> np.ndarray:
        source = self.small.source
        if source.multi_label:
            return np.zeros((rows, len(source.class_names)), np.float32)
        return np.zeros(rows, np.int32)

    def _load(self, batch: Batch, row: int, key: Key) -> None:
        try:
            record = self.small.load(key.record)
            name = self.small.source.describe(key.record)
            pixels = self.transform(record["image"], key, name)
        except UserError as error:
            if self.on_unreadable == "raise":
                raise
            log.warning("skipped in epoch %d: %s", key.epoch, error)
            return
        batch["image"][row] = pixels["image"]
        if "local" in pixels:
            batch["local"][row] = pixels["local"]
        if self.small.source.multi_label:
            batch["label"][row, list(record["label"])] = 1
        else:
            batch["label"][row] = record["label"]
        batch["mask"][row] = 1
