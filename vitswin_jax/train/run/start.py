"""The start of a run: a fresh model, or weights reconciled with its config and its data.

`config.init_from` may be anything that `load_pretrained` takes. The workdir keeps what a resume
needs of it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.json import read_json
from vitswin_jax.core.seal import CHECKSUM, seal, unsealed
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import Params, Source, UserError, with_tuples
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.pretraining import create_pretraining
from vitswin_jax.models.registry import create_model, model_kwargs
from vitswin_jax.nn.scan import stack_blocks
from vitswin_jax.train.keep.workdir import START
from vitswin_jax.train.run.reconcile import RUNS_OWN, needs_head, reconcile, reconcile_preprocess
from vitswin_jax.train.run.unlabelled import Unlabelled
from vitswin_jax.train.state import HEAD_BIASES
from vitswin_jax.weights.formats.tensors import Tensor
from vitswin_jax.weights.locate import locate
from vitswin_jax.weights.open import open_own, open_pretrained
from vitswin_jax.weights.place import read_onto, read_parameters
from vitswin_jax.weights.runs import weights_digest
from vitswin_jax.weights.sources.preprocess import default_preprocess

log = logger(__name__)


@dataclass(frozen=True)
class Origin:
    """The weights that a run started from, and what was made of them; plain data, kept with it."""

    init_from: str
    sha256: str
    preprocess: Mapping[str, Any]
    name: str | None = None
    hints: Mapping[str, Any] = field(default_factory=dict)
    """With `name`: what the config says of the model by hand, where a file does not show it."""
    fresh_head: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of the model, where they are the file's."""
    adapted: Sequence[str] = ()
    """A line for each adaptation."""


_ORIGIN = {
    "type": "object",
    "required": ["init_from", "sha256", "preprocess", "hints", "fields", "adapted"],
    "properties": {
        "init_from": {"type": "string"},
        "sha256": {"type": "string"},
        "name": {"type": ["string", "null"]},
        "preprocess": {"type": "object"},
        "hints": {"type": "object"},
        "fields": {"type": "object"},
        "fresh_head": {"type": "boolean"},
        "adapted": {"type": "array", "items": {"type": "string"}},
    },
}
"""The schema of a start.json: an `Origin` as JSON."""


@dataclass(frozen=True)
class Start:
    """The model before the first step, and how it takes images."""

    model: nn.Module
    preprocess: Preprocess
    origin: Origin | None = None
    """None: the parameters are drawn."""

    def load(self, *, head_bias: float, mesh: Mesh | None = None) -> Params | None:
        """Returns the parameters on a mesh, a fresh head's bias filled; None: to draw.

        Without a mesh they are numpy arrays. On one, each device is given its part alone.
        Raises UserError where the file is no longer what it was when the run began.
        """
        if self.origin is None:
            return None
        located = locate(self.origin.init_from)
        if weights_digest(located.file) != self.origin.sha256:
            raise UserError(
                f"{located.file}: has changed since the run began; choose another --workdir to "
                "start a new run."
            )
        weights = open_own(located, self.origin.name, **self.origin.hints)
        fresh_head, scan = self.origin.fresh_head, self.model.scan
        tensors, _ = weights.adapted_to(self.model, fresh_head=fresh_head)
        if head_bias and fresh_head:
            for name in [name for name in tensors if re.fullmatch(HEAD_BIASES, name)]:
                tensors[name] = Tensor.of(np.full(tensors[name].shape, head_bias, np.float32))
        if mesh is not None:
            return read_onto(tensors, mesh, scan=scan)
        params = read_parameters(tensors)
        if not scan:
            return params
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return jax.tree.map(np.asarray, stack_blocks(params))


def open_start(
    config: ConfigDict,
    source: Source,
    workdir: Path | None,
    pretrain: dict[str, Any] | None = None,
    unlabelled: Unlabelled | None = None,
) -> Start:
    """Returns the start of a run: its model with the number of classes of the data.

    The model has no head if the run is `unlabelled`. Raises UserError where the config names
    another number, and for weights that do not fit.
    """
    fields = config.model.to_dict()
    name, classes = fields.pop("name"), len(source.class_names) if unlabelled is None else 0
    if fields["num_classes"] not in (None, classes):
        why = f"{source.name} has {classes} classes; leave it None to take the data's."
        if unlabelled is not None:
            why = f"{unlabelled.why} reads no labels; leave it None."
        raise UserError(f"model.num_classes={fields['num_classes']} but {why}")
    model = {
        "name": name,
        "fields": fields | {"num_classes": classes},
        "pretrain": pretrain,
    }
    begun = None
    if config.init_from is not None and workdir is not None:
        begun = read_start(workdir, **model)
    return begun or make_start(
        config.init_from,
        **model,
        class_names=source.class_names,
        preprocess=config.preprocess.to_dict(),
    )


def make_start(
    init_from: str | None,
    *,
    name: str,
    fields: Mapping[str, Any],
    class_names: Sequence[str],
    preprocess: Mapping[str, Any],
    pretrain: Mapping[str, Any] | None = None,
) -> Start:
    """Returns the start of a new run, of `config.init_from`, `config.model` and the data's classes.

    With `pretrain`, what `create_pretraining` takes, the model is the encoder of one that learns
    without them. Fields of `preprocess` that are None are the file's, or of a fresh model its
    family's. Raises UserError, before anything is read but the file's header, for what cannot be
    reconciled.
    """
    if init_from is None:
        encoder = create_model(name, **fields)
        model, base = _around(encoder, pretrain), default_preprocess(encoder, name)
        return Start(model, reconcile_preprocess(base, preprocess, model)[0])
    by_default = model_kwargs(name)
    by_hand = {key: value for key, value in fields.items() if with_tuples(value) != by_default[key]}
    hints = {key: value for key, value in by_hand.items() if key not in RUNS_OWN}
    weights = open_own(init_from, name, **hints)
    file = weights.file
    fresh_head = False
    why: list[str] = []
    if pretrain is None and fields["num_classes"] != 0:
        fresh_head, why = needs_head(weights, class_names)
    chosen, notes = reconcile(name, fields, weights.own, origin=str(file), fresh_head=fresh_head)
    model = _around(create_model(name, **{**fields, **chosen}), pretrain)
    _, adaptations = weights.adapted_to(model, fresh_head=fresh_head)
    transform, other = reconcile_preprocess(weights.preprocess, preprocess, model)
    origin = Origin(
        init_from=init_from,
        sha256=weights_digest(file),
        name=name,
        hints=hints,
        fresh_head=fresh_head,
        fields=chosen,
        preprocess=dataclasses.asdict(transform),
        adapted=(*why, *adaptations, *notes, *other),
    )
    log.info("starts from %s: %s.", file, "; ".join(origin.adapted) or "nothing was adapted")
    return Start(model, transform, origin)


def open_teacher(
    path: str, *, class_names: Sequence[str] | None, dtype: DTypeLike, in_chans: int
) -> Start:
    """Returns a teacher, any weights as they are, to compute in `dtype` for `in_chans` channels.

    Raises UserError where it tells other classes apart than `class_names`, if they are given.
    """
    weights = open_pretrained(path, dtype=jnp.dtype(dtype), in_chans=in_chans)
    model, names = weights.model, weights.metadata.class_names
    if class_names is not None and (
        model.num_classes != len(class_names) or names not in (None, tuple(class_names))
    ):
        raise UserError(
            f"distill.teacher={path}: has {model.num_classes} classes, {_first(names or ())}, "
            f"but the data has {len(class_names)}, {_first(class_names)}."
        )
    used = weights.preprocess
    origin = Origin(path, weights_digest(weights.file), dataclasses.asdict(used))
    return Start(model, used, origin)


def save_start(workdir: Path, start: Start) -> None:
    """Writes the facts that a resume needs about weights that it does not load again."""
    if start.origin is not None and jax.process_index() == 0:
        with replacing(workdir / START) as temporary:
            temporary.write_text(
                json.dumps(seal(dataclasses.asdict(start.origin)), indent=1) + "\n",
                encoding="utf-8",
            )


def read_start(
    workdir: Path,
    *,
    name: str,
    fields: Mapping[str, Any],
    pretrain: Mapping[str, Any] | None = None,
) -> Start | None:
    """Returns the start of the run that a folder has, None where it has none from weights."""
    path = workdir / START
    if not path.exists():
        return None
    try:
        saved = read_json(path, _ORIGIN)
        if CHECKSUM in saved:  # older versions wrote none
            saved = unsealed(saved)
        tuples = {key: with_tuples(saved[key]) for key in ("hints", "fields", "adapted")}
        origin = Origin(**saved | tuples)
        transform = Preprocess(**origin.preprocess)
    except (UserError, TypeError, ValueError, KeyError) as error:
        reason = str(error) if isinstance(error, UserError) else f"{path}: is not what was written."
        advice = "remove it, and the run takes it from init_from again"
        raise UserError(f"{reason.rstrip('.')}; {advice}.") from error
    model = _around(create_model(name, **{**fields, **origin.fields}), pretrain)
    return Start(model, transform, origin)


def _around(encoder: nn.Module, pretrain: Mapping[str, Any] | None) -> nn.Module:
    """Returns the model that is trained."""
    return encoder if pretrain is None else create_pretraining(encoder, **pretrain)


def _first(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])]) or "without names"
