"""Model cards: the README.md of a repository on the hub, with its metadata, from what is known.

The card states only what the weights' own metadata and the files beside them state.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from vitswin_jax.core.terminal import printable
from vitswin_jax.core.types import counted, listed
from vitswin_jax.core.version import __version__
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.weights.hub import HUB
from vitswin_jax.weights.metadata import Metadata
from vitswin_jax.weights.parity import IMAGES, Parity
from vitswin_jax.weights.published import class_names

TAG = "vitswin_jax"
"""The tag of each repository that is pushed, and the library of native files."""

LIBRARIES = {"timm": "timm", "huggingface": "transformers", "native": TAG}
"""Format -> the library that reads it, by the hub's name."""

FAMILIES = {"vit": "Vision Transformer", "swin": "Swin Transformer"}
"""The beginning of a family's name -> its name in the papers."""

_DATASETS = "hf:"  # what a dataset of the hub begins with in a run's config
_ACCURACY = "test/accuracy"
_CLASSES = 20  # names of classes that a card lists


@dataclass(frozen=True)
class Card:
    """The facts of a repository that its card is about."""

    repository: str
    """USER/NAME."""
    family: str
    metadata: Metadata
    """For everyone to read: see `metadata.public`."""
    preprocess: Preprocess
    parameters: int
    format: str
    """native, timm or huggingface."""
    config: Mapping[str, Any]
    """The content of `config.json`; empty: there is none."""
    parity: Parity
    otherwise: str = ""
    """A line about what the library's own code computes in another way."""
    licence: str | None = None
    """An identifier of the hub's, such as apache-2.0."""
    report: str | None = None
    """The name of the run's page among the files."""

    def text(self) -> str:
        """Returns the README.md."""
        dataset = self._dataset()
        return _template().render(
            metadata=self._data().to_yaml(),
            name=self.repository,
            model=self._model(),
            parameters=f"{self.parameters:,}",
            task="image classification" if self._has_head else "image features",
            size=_sides(self.preprocess.img_size),
            dataset=dataset and plain(dataset),
            format=self.format,
            library=None if self.format == "native" else LIBRARIES[self.format],
            results=self._results(),
            classes=self._classes(),
            preprocessing=_preprocessing(self.preprocess),
            channels=self.preprocess.channels,
            has_head=self._has_head,
            auto=self._auto(),
            parity=self._parity(),
            origin=self._origin(),
            report=self.report,
            licence=f"`{self.licence}`" if self.licence else "The author states no licence.",
        )

    @property
    def _has_head(self) -> bool:
        return bool(self.metadata.fields["num_classes"])

    def _model(self) -> str:
        paper = next((paper for key, paper in FAMILIES.items() if self.family.startswith(key)), "")
        name = f"`{plain(self.metadata.name)}`"
        return f"{paper} ({name})" if paper else name

    def _data(self) -> Any:
        """Returns the metadata of the card as the hub's package has it."""
        from huggingface_hub import EvalResult, ModelCardData

        task = "image-classification" if self._has_head else "image-feature-extraction"
        library = LIBRARIES[self.format]
        readers = [library] if library == TAG else [TAG, library]
        if library == "timm":
            readers.append("transformers")  # which reads timm's folders, through timm
        measured = self._measured()
        name = self.repository.rpartition("/")[2]
        results = measured and [
            EvalResult(
                task_type=task,
                dataset_type=measured[1],
                dataset_name=measured[1],
                dataset_split=measured[2],
                metric_type="accuracy",
                metric_name="Accuracy",
                metric_value=round(measured[0], 6),
            )
        ]
        return ModelCardData(
            library_name=library,
            pipeline_tag=task,
            license=self.licence,
            base_model=self._base(),
            datasets=_hub_datasets(self._dataset()),
            metrics=["accuracy"] if measured else None,
            tags=[*readers, "jax", self.family, task],
            model_name=name if measured else None,
            eval_results=results or None,
        )

    def _dataset(self) -> str | None:
        return self.metadata.provenance.get("dataset")

    def _measured(self) -> tuple[float, str, str] | None:
        """Returns an accuracy, a fraction, with its dataset and split; None: none is known."""
        known = self.metadata.provenance
        if (share := self.metadata.metrics.get(_ACCURACY)) is not None:
            dataset = str(self._dataset() or "unknown").removeprefix(_DATASETS)
            return float(share), dataset, str(known.get("test_split") or "test")
        if (percent := known.get("expected_top1")) is not None:
            return float(percent) / 100, "imagenet-1k", "validation"
        return None

    def _results(self) -> list[tuple[str, str, str]]:
        measured = self._measured()
        if measured is None:
            return []
        share, dataset, split = measured
        where = plain(f"{dataset}, {split}")
        rows = [("accuracy", f"{100 * share:.2f} %", where)]
        rows += [
            (plain(key.removeprefix("test/")), f"{value:.4g}", where)
            for key, value in sorted(self.metadata.metrics.items())
            if key != _ACCURACY
        ]
        return rows

    def _classes(self) -> str:
        count, facts = self.metadata.fields["num_classes"], self.metadata
        if not count:
            return ""
        names = facts.class_names or class_names(facts.provenance.get("class_list")) or ()
        several = " An image may have several." if self._multi_label else ""
        shown = f": {plain(listed(names, most=_CLASSES))}" if len(names) == count else ""
        return f"{counted(count, 'class', 'classes')}{shown}.{several}"

    @property
    def _multi_label(self) -> bool:
        return bool(self.metadata.provenance.get("multi_label"))

    def _auto(self) -> str:
        """Returns the class of transformers that reads the folder."""
        architecture = next(iter(self.config.get("architectures", [])), "")
        if "ForImageClassification" in architecture or (not architecture and self._has_head):
            return "AutoModelForImageClassification"
        return architecture or "AutoModel"

    def _parity(self) -> str:
        difference, std, outputs = self.parity
        how = " with the numeric details of that model" if self.otherwise else ""
        text = (
            f"Read back by vitswin_jax {__version__}{how}, these files give the {outputs} of the "
            f"model that was pushed: the largest difference on {IMAGES} random images is "
            f"{difference:.3g}, and the standard deviation of the {outputs} is {std:.3g}."
        )
        if self.otherwise:
            return f"{text} {plain(self.otherwise)}, so that its outputs differ."
        if self.format == "native":
            return text
        library = LIBRARIES[self.format]
        return (
            f"{text} The tests of vitswin_jax compare {library}'s own outputs for such folders "
            "with its own: they are at most 5e-5 of their standard deviation apart."
        )

    @property
    def _start(self) -> str | None:
        """The weights that a run started from, by the name in `init_from`."""
        start = self.metadata.provenance.get("init_from") or None
        return start.get("init_from") if isinstance(start, Mapping) else start

    def _origin(self) -> list[tuple[str, str]]:
        known = self.metadata.provenance
        facts = {
            "started from": self._start,
            "converted from": known.get("published") or known.get("hub") or known.get("source"),
            "training split": known.get("train_split"),
            "step": known.get("step"),
            "seed": known.get("seed"),
            "version of vitswin_jax": known.get("version"),
        }
        return [(key, plain(value)) for key, value in facts.items() if value is not None]

    def _base(self) -> str | None:
        """Returns the repository of the hub that the weights are from."""
        named = str(self._start or "")
        if named.startswith(HUB):
            return named.removeprefix(HUB).partition("@")[0]
        return self.metadata.provenance.get("hub")


def plain(text: object) -> str:
    r"""Returns a text as Markdown shows it as it is, in one line and in a cell of a table.

    >>> plain("a|b <i>")
    'a\\|b &lt;i>'
    """
    text = printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return text.replace("`", "'").replace("[", "\\[").replace("*", "\\*")


def _hub_datasets(dataset: str | None) -> list[str] | None:
    """Returns the dataset where the hub knows it by its name: nobody else's folder is linked."""
    if dataset is None or not dataset.startswith(_DATASETS):
        return None
    return [dataset.removeprefix(_DATASETS).partition(":")[0].partition("@")[0]]


def _preprocessing(preprocess: Preprocess) -> list[tuple[str, str]]:
    size, fraction = _sides(preprocess.img_size), preprocess.crop_fraction
    covered = _sides([round(side / fraction) for side in preprocess.img_size])
    how = {
        "squash": f"the whole image to {size}, whatever its shape is",
        "squash_crop": f"the whole image to {covered}, then its middle of {size}",
        "center": f"until it covers {covered}, then its middle of {size}",
    }
    return [
        ("resize", f"{how[preprocess.crop_mode]} ({preprocess.interpolation})"),
        ("scale", "pixels to [0, 1]"),
        ("subtract the mean", _numbers(preprocess.mean)),
        ("divide by the standard deviation", _numbers(preprocess.std)),
    ]


def _sides(size: Sequence[int]) -> str:
    return " × ".join(map(str, size))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(str(np.round(value, 6)) for value in values)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md")
