"""The data of a run: its two splits, and their batches on the mesh."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from vitswin_jax.core.types import Source
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.data.pipeline import (
    BatchIterator,
    EvalBatches,
    Transform,
    make_eval_batches,
    make_train_iterator,
    workers_for,
)
from vitswin_jax.data.sources.open import check_same_classes, open_source
from vitswin_jax.data.sources.splits import Dataset
from vitswin_jax.train.run.sizes import Schedule, Size, parts
from vitswin_jax.train.sharding import shard_batch

Batches = Generator[dict[str, jax.Array], None, None]
Opener = Callable[..., tuple[Source, Source]]


def open_data(
    data: dict[str, Any],
    *,
    seed: int,
    dataset: Dataset | None = None,
    opened: tuple[Source, Source] | None = None,
) -> tuple[Source, Source]:
    """Opens the train and the test split, of `dataset` if it is passed.

    Takes from `data` the keys that say which. Splits that are `opened` already are returned.
    """
    where = {key: data.pop(key) for key in ("dataset", "data_dir", "holdout", "outside_files")}
    splits = [data.pop("train_split"), data.pop("test_split")]
    if opened is not None:
        return opened
    if dataset is None:
        train, test = (open_source(split=split, seed=seed, **where) for split in splits)
    else:
        holdout = where["holdout"]
        train, test = (dataset.open(split, holdout=holdout, seed=seed) for split in splits)
    check_same_classes(train, test)
    return train, test


def make_inputs(
    train: Source,
    *,
    batch_size: int,
    eval_batch_size: int,
    workers: int,
    on_unreadable: str,
    transform: Transform,
    preprocess: Preprocess,
    mesh: Mesh,
    seed: int,
    repeats: int,
    sizes: Schedule,
) -> tuple[Callable[[int, int], Batches], Callable[[Source], EvalBatches]]:
    """Returns functions to the train batches, from one to another, and to a split's batches."""
    here = {"host_index": jax.process_index(), "host_count": jax.process_count()}

    def workers_of(source: Source) -> int:
        platform = mesh.devices.flat[0].platform
        return workers_for(workers, platform=platform, records=len(source))

    def make_test_batches(source: Source) -> EvalBatches:
        return make_eval_batches(
            source,
            batch_size=eval_batch_size,
            preprocess=preprocess,
            workers=workers_of(source),
            **here,
        )

    def make_train_batches(start: int, stop: int) -> Batches:
        each = list(parts(sizes, start, stop)) or [(start, stop, sizes[-1][1])]
        return of_one_size(*each[0]) if len(each) == 1 else of_several(each)

    def of_several(each: Sequence[tuple[int, int, Size]]) -> Batches:
        for part in each:
            yield from of_one_size(*part)

    def of_one_size(start: int, stop: int, size: Size) -> Batches:
        batches = make_train_iterator(
            train,
            batch_size=batch_size,
            transform=transform.fitted(size),
            seed=seed,
            start_batch=start,
            num_batches=stop - start,
            on_unreadable=on_unreadable,
            repeats=repeats,
            workers=workers_of(train),
            **here,
        )
        return device_batches(batches, mesh)

    return make_train_batches, make_test_batches


def device_batches(batches: BatchIterator, mesh: Mesh, *, ahead: int = 2) -> Batches:
    """Gives batches on the mesh, `ahead` of them already on their way while one is used."""
    with contextlib.closing(batches):
        queue: deque[dict[str, jax.Array]] = deque()
        for batch in batches:
            queue.append(shard_batch(batch, mesh))
            if len(queue) > ahead:
                yield queue.popleft()
        yield from queue
