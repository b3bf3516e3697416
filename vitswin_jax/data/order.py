"""The order in which records are shown: shuffled anew in each epoch, without end, or once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import grain
import numpy as np

from vitswin_jax.core.types import Source
from vitswin_jax.data.sources.mixtures import MixtureSource, draw

_SHUFFLE, AUGMENT = 1, 2  # so that two uses of one seed draw unrelated numbers


class Key(NamedTuple):
    """Names one showing of one record: all that its augmentation depends on."""

    epoch: int
    record: int
    copy: int = 0


def _shuffled(length: int, seed: int, *, part: int = 0) -> grain.MapDataset:
    """Returns the keys of all epochs in one row, each epoch shuffled anew; parts are unrelated."""
    numbers = [seed, _SHUFFLE, part] if part else [seed, _SHUFFLE]
    shuffle_seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    keys = grain.MapDataset.range(length).map_with_index(partial(_to_key, length))
    return keys.shuffle(seed=shuffle_seed).repeat()


def stream(source: Source, seed: int) -> _Mixed | grain.MapDataset:
    """Returns the keys of all that is shown, in order."""
    if not isinstance(source, MixtureSource):
        return _shuffled(len(source), seed)
    streams = [_shuffled(len(part), seed, part=n) for n, part in enumerate(source.parts, 1)]
    return _Mixed(streams, source.starts, source.weights)


@dataclass(frozen=True)
class _Mixed:
    """The streams of a mixture's parts, drawn from by weight; record numbers are the mixture's."""

    streams: Sequence[grain.MapDataset]
    starts: Sequence[int]
    weights: Sequence[int]

    def __getitem__(self, position: int) -> Key:
        part, place = draw(position, self.weights)
        key = self.streams[part][place]
        return Key(key.epoch, self.starts[part] + key.record)


def _to_key(length: int, position: int, record: int) -> Key:
    return Key(position // length, record)


@dataclass(frozen=True)
class TrainKeys:
    """Names the records in one host's rows of a global batch; the other rows cost nothing."""

    stream: _Mixed | grain.MapDataset
    length: int
    batch_size: int
    rows: range
    repeats: int

    def __call__(self, batch: int) -> list[Key]:
        return [self._key(batch * self.batch_size + row) for row in self.rows]

    def _key(self, position: int) -> Key:
        epoch, place = divmod(position, self.length)
        which, copy = divmod(place, self.repeats)
        return self.stream[epoch * self.length + which]._replace(copy=copy)


def eval_keys(length: int, batch_size: int, rows: range, batch: int) -> list[Key | None]:
    """Names the records in one host's rows of a global batch; None after the last record."""
    records = [batch * batch_size + row for row in rows]
    return [Key(0, record) if record < length else None for record in records]
