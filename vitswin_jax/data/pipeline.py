"""Batches from a source: shuffled without end to train on, each example once to evaluate."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import grain
import numpy as np
from absl import flags

from vitswin_jax.data.decode import decode_image
from vitswin_jax.data.sources import Source
from vitswin_jax.data.transforms import Preprocess, TrainTransform
from vitswin_jax.types import Batch, UserError

log = logging.getLogger(__name__)

_SHUFFLE, _AUGMENT = 1, 2  # so that two uses of one seed draw unrelated numbers
_MAX_THREADS = 8


class Key(NamedTuple):
    """Names one showing of one record: all that its augmentation depends on."""

    epoch: int
    record: int


def make_train_iterator(
    source: Source,
    *,
    batch_size: int,
    transform: TrainTransform,
    seed: int,
    start_batch: int = 0,
    num_batches: int | None = None,
    host_index: int = 0,
    host_count: int = 1,
    workers: int = 0,
    threads: int | None = None,
    on_unreadable: Literal["raise", "skip"] = "raise",
) -> Iterator[Batch]:
    """Returns this host's rows of the global batches from `start_batch` on.

    The stream is every epoch's permutation of the records, one after the other without a
    gap, cut into batches of `batch_size` over all hosts; it is a function of the source,
    `seed` and `batch_size` alone, whatever the hosts, `workers` (processes) or `threads`,
    and it ends only after `num_batches`. Augmentation depends on (seed, epoch, record).
    An unreadable image raises, or with "skip" is logged and has a mask of 0.

    Close the iterator (`contextlib.closing`) to end its workers early. Raises UserError
    where the hosts do not divide the batch, or there are no records.
    """
    rows = _host_rows(source, batch_size, host_index, host_count)
    if on_unreadable not in ("raise", "skip"):
        raise UserError(f"on_unreadable={on_unreadable!r} must be 'raise' or 'skip'.")
    shuffle_seed = int(np.random.SeedSequence([seed, _SHUFFLE]).generate_state(1)[0])
    dataset = (
        grain.MapDataset.range(len(source))
        # Grain numbers the records of all epochs in one row.
        .map_with_index(_ToKey(len(source)))
        .shuffle(seed=shuffle_seed)  # anew for each epoch
        .repeat()
        .batch(batch_size, batch_fn=list)  # of keys; each host loads its rows alone
    )
    stop = None if num_batches is None else start_batch + num_batches
    load = _LoadRows(source, _Augment(transform, seed), transform.img_size, rows, on_unreadable)
    return _iterate(dataset[start_batch:stop].map(load), workers, threads)


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
    load = _LoadRows(source, _Evaluate(preprocess), preprocess.img_size, rows, "raise")
    keys = grain.MapDataset.range(-(-len(source) // batch_size)).map(
        _EvalKeys(len(source), batch_size)
    )
    return EvalBatches(keys.map(load), workers, threads)


@dataclass(frozen=True)
class EvalBatches:
    """The batches of one evaluation; may be iterated over any number of times."""

    _dataset: grain.MapDataset
    _workers: int
    _threads: int | None

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Batch]:
        return _iterate(self._dataset, self._workers, self._threads)


def _host_rows(source: Source, batch_size: int, host_index: int, host_count: int) -> slice:
    """Returns the rows of a global batch that one host loads."""
    if not len(source):
        raise UserError(f"{source.name}: has no examples.")
    if batch_size < 1 or batch_size % host_count:
        raise UserError(
            f"batch_size={batch_size} must be a multiple of the {host_count} host(s), above 0."
        )
    rows = batch_size // host_count
    return slice(host_index * rows, (host_index + 1) * rows)


def _iterate(dataset: grain.MapDataset, workers: int, threads: int | None) -> Iterator[Batch]:
    """Yields the batches of a dataset in order, loaded ahead of time."""
    threads = min(_MAX_THREADS, os.cpu_count() or 1) if threads is None else threads
    # Grain counts batches here, and would hold 500 of them.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
    batches = dataset.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # in a notebook or a test, without absl.app
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags before it starts a process
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(workers, 2))
    with contextlib.closing(iter(batches)) as iterator:
        yield from iterator


@dataclass(frozen=True)
class _ToKey:
    length: int

    def __call__(self, position: int, record: int) -> Key:
        return Key(position // self.length, record)


@dataclass(frozen=True)
class _EvalKeys:
    length: int
    batch_size: int

    def __call__(self, batch: int) -> list[Key | None]:
        records = range(batch * self.batch_size, (batch + 1) * self.batch_size)
        return [Key(0, record) if record < self.length else None for record in records]


@dataclass(frozen=True)
class _Augment:
    transform: TrainTransform
    seed: int

    def __call__(self, image: np.ndarray, key: Key) -> np.ndarray:
        # Counters 2**128 apart never meet: the low half counts the numbers drawn.
        philox = np.random.Philox(
            key=np.array([self.seed, _AUGMENT], np.uint64),
            counter=np.array([0, 0, key.epoch, key.record], np.uint64),
        )
        return self.transform(image, np.random.Generator(philox))


@dataclass(frozen=True)
class _Evaluate:
    preprocess: Preprocess

    def __call__(self, image: np.ndarray, key: Key) -> np.ndarray:
        del key
        return self.preprocess.image(image)


@dataclass(frozen=True)
class _LoadRows:
    """Loads the rows of a batch that belong to this host; None and skipped rows stay blank."""

    source: Source
    transform: Callable[[np.ndarray, Key], np.ndarray]
    img_size: tuple[int, int]
    rows: slice
    on_unreadable: str

    def __call__(self, keys: Sequence[Key | None]) -> Batch:
        keys = keys[self.rows]
        batch = Batch(
            image=np.zeros((len(keys), *self.img_size, 3), np.uint8),
            label=np.zeros(len(keys), np.int32),
            mask=np.zeros(len(keys), np.float32),
        )
        for row, key in enumerate(keys):
            if key is not None:
                self._load(batch, row, key)
        return batch

    def _load(self, batch: Batch, row: int, key: Key) -> None:
        try:
            record: Any = self.source[key.record]
            image = decode_image(record["image"], name=self.source.describe(key.record))
        except UserError as error:
            if self.on_unreadable == "raise":
                raise
            log.warning("skipped in epoch %d: %s", key.epoch, error)
            return
        batch["image"][row] = self.transform(image, key)
        batch["label"][row] = record["label"]
        batch["mask"][row] = 1
