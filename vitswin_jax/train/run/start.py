"""The start of a run: a fresh model, or weights reconciled with its config and its data.

`config.init_from` may be anything that `load_pretrained` takes. Who decides what:

- the run: the classes, which are the data's, and the fields of `RUNS_OWN`;
- the run where it names them, else the file: `RESIZED`, sizes that tables are resized to;
- the file: all other fields, in sizes and in numeric details. A value that the config names (by the
  variant, or by hand) and that would change which parameters there are, raises; one that changes
  none, such as `act` or `global_pool`, wins where it was set by hand.

A fresh head takes `pre_logits` with it (ViT, section 3.2: the whole pre-trained head is removed),
unless the config names a width. With it `fc_norm` may be fresh, and relative positions that all
blocks shared may become each block's own, as in MAE's and SimMIM's fine-tuning.
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

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.choices import Faults
from vitswin_jax.core.json import read_json
from vitswin_jax.core.seal import CHECKSUM, seal, unsealed
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import Params, UserError, with_tuples
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.fields import EXECUTION, LAYOUT, TRAINING
from vitswin_jax.models.pretraining import create_pretraining
from vitswin_jax.models.registry import create_model, model_kwargs, resolve_name
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.nn.layers import pair
from vitswin_jax.nn.scan import stack_blocks
from vitswin_jax.train.keep.workdir import START
from vitswin_jax.train.state import HEAD_BIASES
from vitswin_jax.weights.formats.tensors import Tensor
from vitswin_jax.weights.locate import locate
from vitswin_jax.weights.open import Pretrained, open_own, open_pretrained
from vitswin_jax.weights.place import read_onto, read_parameters
from vitswin_jax.weights.runs import weights_digest
from vitswin_jax.weights.shapes import parameter_shapes
from vitswin_jax.weights.sources.preprocess import averaged, default_preprocess

log = logger(__name__)

RUNS_OWN = ("num_classes", "in_chans", "dtype", *TRAINING, *EXECUTION, *LAYOUT)
RESIZED = ("img_size", "window_size", "pretrained_window_sizes")


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
        return read_model(
            weights,
            self.model,
            fresh_head=self.origin.fresh_head,
            head_bias=head_bias if self.origin.fresh_head else 0.0,
            mesh=mesh,
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
        return Start(model, _preprocess(base, preprocess, model)[0])
    by_default = model_kwargs(name)
    by_hand = {key: value for key, value in fields.items() if with_tuples(value) != by_default[key]}
    hints = {key: value for key, value in by_hand.items() if key not in RUNS_OWN}
    weights = open_own(init_from, name, **hints)
    file = weights.file
    fresh_head = False
    why: list[str] = []
    if pretrain is None and fields["num_classes"] != 0:
        fresh_head, why = _needs_head(weights, class_names)
    chosen, notes = reconcile(name, fields, weights.own, origin=str(file), fresh_head=fresh_head)
    model = _around(create_model(name, **{**fields, **chosen}), pretrain)
    _, adaptations = weights.adapted_to(model, fresh_head=fresh_head)
    transform, other = _preprocess(weights.preprocess, preprocess, model)
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


def reconcile(
    name: str, fields: Mapping[str, Any], theirs: nn.Module, *, origin: str, fresh_head: bool
) -> tuple[dict[str, Any], list[str]]:
    """Returns the fields that are the file's and not the config's, and a line for what differs.

    Raises UserError that lists every named field that is another architecture than the file's.
    """
    base, _ = resolve_name(name)
    _, row = VARIANTS.get(base, (base, {}))
    by_default = model_kwargs(name)
    chosen: dict[str, Any] = {}
    faults, notes = Faults(), []
    for key, value in fields.items():
        ours, other = with_tuples(value), getattr(theirs, key)
        by_hand = ours != by_default[key]
        if key in RUNS_OWN or ours == other:
            continue
        if key in RESIZED or (key == "pre_logits" and fresh_head):
            if not by_hand and key not in row and key != "pre_logits":
                chosen[key] = other
        elif not (by_hand or key in row):
            chosen[key] = other
        elif _begins_anew(theirs, key, ours, fresh_head=fresh_head):
            continue  # the adaptation says so
        elif _changes_parameters(theirs, key, ours):
            faults.append(f"model.{key} is {ours!r} and the file's {other!r}")
        elif by_hand:
            notes.append(f"{key} is {ours!r}, the file's {other!r}")
        else:
            chosen[key] = other
    faults.check(f"{origin}: config.model ({name}) is of another architecture: ")
    return chosen, notes


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


def read_model(
    weights: Pretrained,
    model: nn.Module,
    *,
    fresh_head: bool = False,
    head_bias: float = 0.0,
    mesh: Mesh | None = None,
) -> Params:
    """Returns a model's parameters, in its layout, on a mesh, or as arrays of the host.

    A `head_bias` other than 0 is that of every class.
    """
    tensors, _ = weights.adapted_to(model, fresh_head=fresh_head)
    if head_bias:
        for name in [name for name in tensors if re.fullmatch(HEAD_BIASES, name)]:
            tensors[name] = Tensor.of(np.full(tensors[name].shape, head_bias, np.float32))
    if mesh is not None:
        return read_onto(tensors, mesh, scan=model.scan)
    params = read_parameters(tensors)
    if not model.scan:
        return params
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return jax.tree.map(np.asarray, stack_blocks(params))


def _around(encoder: nn.Module, pretrain: Mapping[str, Any] | None) -> nn.Module:
    """Returns the model that is trained."""
    return encoder if pretrain is None else create_pretraining(encoder, **pretrain)


def _needs_head(weights: Pretrained, class_names: Sequence[str]) -> tuple[bool, list[str]]:
    """Returns whether the head has to be fresh though a head of the same size may be there."""
    names, theirs = weights.metadata.class_names, weights.own.num_classes
    if theirs != len(class_names):
        return weights.methods.head_rows(theirs, len(class_names)) is None, []
    if names is None:
        return False, ["the head is kept; the file does not name its classes"]
    if tuple(names) != tuple(class_names):
        return True, ["the file's classes have other names"]
    return False, ["the head is kept; the classes are the same"]


def _first(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])]) or "without names"


def _preprocess(
    base: Preprocess, section: Mapping[str, Any], model: nn.Module
) -> tuple[Preprocess, list[str]]:
    """Returns `base` with what the config says in its place, and a line for each difference."""
    said = {key: value for key, value in section.items() if value is not None}
    fitted = base.fitted(pair(model.img_size), model.in_chans)
    for key in said.keys() & {"mean", "std"}:
        said[key] = _for_channels(key, said[key], model.in_chans)
    changed = dataclasses.replace(fitted, **said)
    notes = [] if fitted.channels == base.channels else [averaged(base, fitted)]
    notes += [
        f"{key} is {getattr(changed, key)!r}, the file's {getattr(base, key)!r}"
        for key in said
        if getattr(changed, key) != getattr(base, key)
    ]
    return changed, notes


def _for_channels(key: str, value: Sequence[float], channels: int) -> tuple[float, ...]:
    """Returns `preprocess.mean` or `std` for each channel; one number is that of all (as timm)."""
    if len(value) not in (1, channels):
        raise UserError(
            f"preprocess.{key}={tuple(value)} has {len(value)} numbers, but model.in_chans="
            f"{channels}; give one number per channel, or one for all."
        )
    return tuple(value) * (channels // len(value))


def _begins_anew(theirs: nn.Module, key: str, value: Any, *, fresh_head: bool) -> bool:
    """Returns whether the file's parameters can begin what a field adds (`convert.adapt`)."""
    if key == "fc_norm":
        return fresh_head and bool(value)
    shared = theirs.pos_embed_at == "shared" if key == "pos_embed_at" else False
    return shared and value == "every" and theirs.pos_embed == "relative"


def _changes_parameters(theirs: nn.Module, key: str, value: Any) -> bool:
    """Returns whether a model with one field changed has other parameters, or cannot be."""
    changed = theirs.clone(**{key: value})
    try:
        changed.check()
        return parameter_shapes(changed) != parameter_shapes(theirs)
    except (ArithmeticError, TypeError, ValueError):  # UserError is a ValueError
        return True
