"""Weights files of every source as one thing: our parameters, unread, and what is known of them."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import linen as nn

from vitswin_jax.core.types import Shapes, UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.masked import MaskedModel
from vitswin_jax.models.pretraining import create_pretraining, describe_method
from vitswin_jax.models.registry import (
    FAMILIES,
    create_model,
    family_of,
    model_kwargs,
    resolve_name,
)
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights.adapt import Methods, adapt, check_parameters
from vitswin_jax.weights.formats import native as files
from vitswin_jax.weights.formats import read as formats
from vitswin_jax.weights.formats.tensors import Tensor, Tensors, is_float
from vitswin_jax.weights.locate import locate
from vitswin_jax.weights.metadata import Metadata
from vitswin_jax.weights.shapes import parameter_shapes, sizes_of
from vitswin_jax.weights.sources.detect import Detected, detect
from vitswin_jax.weights.sources.masked import Decoder, find_decoder
from vitswin_jax.weights.sources.rules import apply_rules
from vitswin_jax.weights.sources.source import BUFFERS

log = logging.getLogger(__name__)

NUMERICS = (
    "act",
    "norm_eps",
    "window_clip",
    "pad_before_roll",
    "global_pool",
    "window_size",
    "pretrained_window_sizes",
    "num_heads",
    "img_size",
    "group_norm_eps",
    "weight_var_eps",
    "weight_std_eps",
    "mask_value",
    "capacity_over",
)
"""Fields that are a code's own, or that not every format's file shows."""


@dataclass(frozen=True)
class Pretraining:
    """What a weights file has besides an encoder: what goes on with its pre-training."""

    fields: Mapping[str, Any]
    """What `create_pretraining` takes besides the encoder; what no file shows is not there."""
    tensors: Mapping[str, Tensor]
    """The parameters that are not the encoder's."""


@dataclass(frozen=True)
class Weights:
    """A weights file, its tensors under our names and in our layouts."""

    file: Path
    tensors: Mapping[str, Tensor]
    """Exactly the parameters of the file's own model; of a pre-trained one, its encoder's."""
    metadata: Metadata
    methods: Methods
    """How its source adapts them to other sizes."""
    open_pretraining: Callable[[], Pretraining] | None = None
    """Opens what the file has besides; None where there is nothing to go on pre-training with."""

    def model(self, **fields: Any) -> nn.Module:
        """Returns the file's own model, but for `fields`."""
        return create_model(self.metadata.name, **{**self.metadata.fields, **fields})

    def adapted_to(
        self, model: nn.Module, *, origin: str, fresh_head: bool = False
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Returns a model's parameters, flat and unread, and a line for each adaptation.

        Raises UserError, naming `origin`, for what cannot be adapted; see `convert.adapt`.
        """
        if isinstance(model, MaskedModel):
            return self._pretraining_for(model, origin=origin)
        return adapt(
            self.tensors,
            parameter_shapes(model),
            old=sizes_of(self.model()),
            new=sizes_of(model),
            methods=self.methods,
            origin=origin,
            fresh_head=fresh_head,
        )

    def pretraining_model(self, **fields: Any) -> MaskedModel:
        """Returns the model that is pre-trained, as the file has it but for fields of its encoder.

        Raises UserError for a file that has no decoder.
        """
        return create_pretraining(self.model(**fields), **self._pretraining().fields)

    def _pretraining(self) -> Pretraining:
        if self.open_pretraining is None:
            raise UserError(f"{self.file}: has no decoder to go on pre-training with.")
        return self.open_pretraining()

    def _pretraining_for(
        self, model: MaskedModel, *, origin: str
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Returns what `adapted_to` does, of the encoder and of all else."""
        theirs = describe_method(self.pretraining_model())
        ours = describe_method(model)
        if theirs["method"] != ours["method"]:
            raise UserError(
                f"{origin}: was pre-trained by {theirs['method']}, and pretrain.method="
                f"{ours['method']!r}."
            )
        encoder, notes = self.adapted_to(model.encoder, origin=origin)
        notes += [
            f"{key} is {ours[key]!r}, the file's {theirs[key]!r}"
            for key in self.metadata.pretrain or ()  # which other codes' files do not show
            if ours[key] != theirs[key]
        ]
        tensors = {f"encoder/{name}": tensor for name, tensor in encoder.items()}
        tensors |= self._pretraining().tensors
        found = {name: tensor.shape for name, tensor in tensors.items()}
        check_parameters(found, parameter_shapes(model), origin=origin)
        return tensors, notes


def open_weights(path: str | Path, name: str | None = None, **asked: Any) -> Weights:
    """Opens a weights file of any source; reads nothing of its tensors.

    `path` may be all that `locate` takes, a published name too. `name` and `asked`, a variant's
    name and fields, supply what the file does not show. Raises UserError for a file that is damaged
    or from no known source, for parameters that do not fit its model, all listed, and for another
    family than the name's.
    """
    located = locate(path)
    path, name = located.file, name or _known(located.variant)
    contents = formats.read_tensors(path)
    if files.KEY in contents.header:
        return _open_native(path, contents, name)
    # A bare family's fields are defaults that nobody named.
    hints = {} if name is None or name in FAMILIES else model_kwargs(name)
    found = detect(path, contents, hints, asked)
    source, family = found.source, found.source.family
    _check_family(path, f"{source.name} {family}", family, name)
    model, shapes = _own_model(path, found)
    tensors, dropped = apply_rules(found.tensors, source.rules, shapes, origin=str(path))
    unused = [*found.left_out, *(n for n in dropped if not n.endswith(BUFFERS))]
    if unused:
        more = f", ... ({len(unused)} in all)" if len(unused) > 5 else ""
        log.info("%s: not used: %s%s", path, ", ".join(unused[:5]), more)
    decoder = find_decoder(contents.tensors)
    # A file looks like any ViT's, and its decoder tells how the encoder was given images.
    known = name if decoder is None else f"{name or family}.{decoder.method}"
    images = located.images or source.images(found.fields, known)
    named = len(located.class_names or ()) == model.num_classes
    metadata = Metadata(
        name=_variant(family, found.fields, name) or family,
        fields=found.fields,
        preprocess=Preprocess(img_size=pair(model.img_size), **images),
        class_names=located.class_names if named else None,
        provenance={**_provenance(path, contents, found), **located.provenance},
    )
    methods = Methods(source.pos_embed, source.bias_table, source.head_rows)
    if decoder is None:
        return Weights(path, tensors, metadata, methods)
    pretraining = functools.partial(_read_decoder, path, decoder, contents.tensors, model, found)
    return Weights(path, tensors, metadata, methods, pretraining)


def weights_file(path: str | Path) -> Path:
    """Returns the weights file that `path` names, as `locate` does."""
    return locate(path).file


def _own_model(path: Path, found: Detected) -> tuple[nn.Module, Shapes]:
    try:
        model = create_model(found.source.family, **found.fields)
        return model, parameter_shapes(model)
    except UserError as error:
        raise UserError(f"{path}: shows no model that could be: {error}") from error
    except (ArithmeticError, TypeError, ValueError) as error:
        sizes = ", ".join(f"{name}={value!r}" for name, value in found.fields.items())
        raise UserError(f"{path}: shows no model that could be: {sizes}.") from error


def _provenance(path: Path, contents: formats.Contents, found: Detected) -> dict[str, Any]:
    """Returns what a file is, and what writing it back needs: its prefix and its dtype."""
    name = next(iter(found.tensors))
    whole = [other for other in contents.tensors if other.endswith(name)]
    dtypes = {tensor.dtype.name for tensor in found.tensors.values() if is_float(tensor)}
    return {
        "source": found.source.name,
        "file": path.name,
        "format": found.source.format,
        "prefix": whole[0].removesuffix(name) if whole else found.source.prefix,
        "dtype": dtypes.pop() if len(dtypes) == 1 else "float32",
    }


def _open_native(path: Path, contents: formats.Contents, name: str | None) -> Weights:
    metadata = Metadata.from_json(files.native_metadata(path, contents.header), origin=str(path))
    model = create_model(metadata.name, **metadata.fields)
    _check_family(path, metadata.name, family_of(model), name)
    whole = model
    if metadata.pretrain is not None:
        whole = create_pretraining(model, **metadata.pretrain)
    found = {name: tensor.shape for name, tensor in contents.tensors.items()}
    check_parameters(found, parameter_shapes(whole), origin=str(path))
    _check_dtypes(path, contents.tensors)
    if whole is model:
        return Weights(path, contents.tensors, metadata, Methods())
    own, others = divide_encoder(contents.tensors)
    pretraining = Pretraining(metadata.pretrain, others)
    return Weights(path, own, metadata, Methods(), lambda: pretraining)


def _read_decoder(
    path: Path, decoder: Decoder, tensors: Tensors, encoder: nn.Module, found: Detected
) -> Pretraining:
    """Returns what a file of another code has besides its encoder; reads none of its numbers."""
    theirs = decoder.take(tensors)
    try:
        fields = decoder.fields(theirs, found.fields)
        shapes = parameter_shapes(create_pretraining(encoder.clone(num_classes=0), **fields))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    _, others = divide_encoder(shapes)
    return Pretraining(fields, apply_rules(theirs, decoder.rules, others, origin=str(path))[0])


def divide_encoder(named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what is named as a pre-training model's parameters: its encoder's, and the rest."""
    prefix = "encoder/"
    encoder = {n.removeprefix(prefix): x for n, x in named.items() if n.startswith(prefix)}
    return encoder, {n: x for n, x in named.items() if not n.startswith(prefix)}


def _check_family(path: Path, holds: str, family: str, name: str | None) -> None:
    if name is not None and (other := family_of(create_model(name))) != family:
        raise UserError(f"{path}: holds {holds}, which is no {other} like {name}.")


def _check_dtypes(path: Path, tensors: Mapping[str, Tensor]) -> None:
    wrong = [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if not is_float(tensor)]
    if wrong:
        raise UserError(f"{path}: these are no floating-point numbers: {', '.join(wrong)}.")


def _known(name: str | None) -> str | None:
    """Returns the name of a model, or None where there is none of that name."""
    with contextlib.suppress(UserError):
        return name if name and resolve_name(name) else None
    return None


def _variant(family: str, fields: Mapping[str, Any], name: str | None) -> str | None:
    """Returns the variant called `name`, or else that with the most fields, whose these are."""
    fits = [
        name
        for name, (other, sizes) in VARIANTS.items()
        if other == family and all(_is_size(fields, *size) for size in sizes.items())
    ]
    if name is not None and (named := resolve_name(name)[0]) in fits:
        return named
    return max(fits, key=lambda name: len(VARIANTS[name][1]), default=None)


def _is_size(fields: Mapping[str, Any], key: str, value: Any) -> bool:
    """Returns whether a field is a variant's; where LayerScale starts, no trained file shows."""
    if key == "init_values":
        return bool(fields.get(key)) == bool(value)
    return fields.get(key) == value
