"""The TFDS builder of every dataset that this project writes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from vitswin_jax.core.types import Record

Examples = Callable[[], Iterable[Record]]
"""Starts a pass over the examples of one split."""


class EncodedImageBuilder(  # type: ignore[call-arg]  # TFDS comes without types
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Writes encoded images and their classes as ArrayRecord, in the order they are given.

    TFDS's own builder of this kind (`AdhocBuilder`) and its encoding of arrays both need
    TensorFlow; encoded bytes in an ArrayRecord do not.
    """

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Examples],
        *,
        class_names: Sequence[str],
        description: str,
        data_dir: str,
    ) -> None:
        # TFDS reads `name` and `VERSION` from the class; here every instance has its own.
        self.name = name
        self.VERSION = tfds.core.Version("1.0.0")
        self._splits = splits
        self._class_names = class_names
        self._description = description
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, None)),
            "label": tfds.features.ClassLabel(names=self._class_names),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._description,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # reading shuffles; a record keeps the number it was given
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # nothing is downloaded
        return {name: self._generate_examples(start) for name, start in self._splits.items()}

    def _generate_examples(self, start: Examples) -> Iterator[tuple[int, dict]]:
        for index, record in enumerate(start()):
            # A file object is stored as it is; an array would be encoded by TensorFlow.
            yield index, {"image": io.BytesIO(record["image"]), "label": record["label"]}
