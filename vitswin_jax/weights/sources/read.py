"""A file of another project as our parameters: its original, its fields and its tensors."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import linen as nn

from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import Shapes, UserError, listed
from vitswin_jax.models.claims import claiming
from vitswin_jax.models.pretraining import create_pretraining
from vitswin_jax.models.registry import create_model, family_of, resolve_name
from vitswin_jax.models.unlabelled import divide_encoder
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.weights.formats.read import Contents
from vitswin_jax.weights.formats.tensors import Tensor, Tensors, is_float
from vitswin_jax.weights.locate import Located
from vitswin_jax.weights.shapes import parameter_shapes
from vitswin_jax.weights.sources.config import Training, read_config
from vitswin_jax.weights.sources.detect import Detected, detect
from vitswin_jax.weights.sources.facts import Facts, choose_name, name_of_file, own_name
from vitswin_jax.weights.sources.masked import Decoder, DecoderWeights, find_decoder
from vitswin_jax.weights.sources.preprocess import images_of
from vitswin_jax.weights.sources.rules import apply_rules
from vitswin_jax.weights.sources.source import BUFFERS, Fields, Source

log = logger(__name__)


@dataclass(frozen=True)
class Original:
    """A file of another code, under our names and in our layouts."""

    source: Source
    model: nn.Module
    """The file's own model."""
    name: str
    """The variant, or the family for sizes that no variant has."""
    fields: Fields
    images: Mapping[str, Any]
    """The fields of `Preprocess`, except for the size, by the configuration or the source."""
    class_names: tuple[str, ...] | None
    tensors: Mapping[str, Tensor]
    """Exactly the parameters of `model`, unread."""
    provenance: Mapping[str, Any]
    open_decoder: Callable[[], DecoderWeights] | None
    """Opens the decoder of a file that has one."""
    training: Training
    """The facts that a configuration of ours adds."""


def read_original(
    located: Located, contents: Contents, name: str | None, asked: Mapping[str, Any]
) -> Original:
    """Recognises the original of a file and gives its tensors our names; reads no tensor.

    `name` and `asked`, a variant's name and fields, supply what neither the file nor the
    configuration beside it shows; see `facts.py` for the order. Raises UserError for a file from no
    known source, for facts that contradict its tensors, for parameters that do not fit its model,
    all listed, and for another family than the name's.
    """
    path, stated = located.file, read_config(located.beside)
    given = name or located.variant or own_name(path, contents.architecture)
    name = choose_name(path, given, stated)
    name, found = _detect(located, contents, Facts(name, asked, stated))
    source, family = found.source, found.source.family
    if name is not None:
        check_family(path, f"{source.name} {family}", family, name)
    model, shapes = _own_model(path, found)
    tensors, dropped = apply_rules(found.tensors, source.rules, shapes, origin=str(path))
    unused = [*found.left_out, *(n for n in dropped if not n.endswith(BUFFERS))]
    if unused:
        log.info("%s: not used: %s", path, listed(unused))
    open_decoder, known = None, name
    if found.method is not None:  # only this shows how a plain ViT was given images
        known = f"{name or family}.{found.method.name}"
    if (beside := find_decoder(contents, found.root)) is not None:
        decoder, theirs = beside
        open_decoder = functools.partial(_read_decoder, path, decoder, theirs, model, found)
        known = f"{name or family}.{decoder.method}"
    variant = _variant(family, found.fields, name) or family
    images = located.images or (stated and stated.images)
    images = images or images_of(source, found.fields, known)
    names = None if stated is None else stated.class_names
    return Original(
        source,
        model,
        variant,
        found.fields,
        images,
        names if names is not None and len(names) == model.num_classes else None,
        tensors,
        _provenance(path, found),
        open_decoder,
        Training() if stated is None else stated.training,
    )


def _detect(located: Located, contents: Contents, facts: Facts) -> tuple[str | None, Detected]:
    """Returns the name of a file's model and what the file is.

    Without a name among the facts, that of the file itself counts if its tensors agree with it.
    """
    path, called = located.file, name_of_file(located.file)
    if facts.name is None and called is not None:
        named = dataclasses.replace(facts, name=called)
        try:
            found = detect(path, contents, named, located.key)
            same = found.source.family == family_of(create_model(called))
        except UserError:  # of the name or of the file: what follows tells them apart
            same = False
        if same and not named.other_parts(found.fields):
            log.info("%s: what no tensor shows is that of %s, by its name", path, called)
            return called, found
        log.info("%s: is not what its name says, which is not used", path)
    return facts.name, detect(path, contents, facts, located.key)


def check_family(path: Path, holds: str, family: str, name: str) -> None:
    """Raises UserError if the model called `name` is of another family than the file's."""
    if (other := family_of(create_model(name))) != family:
        raise UserError(f"{path}: contains {holds}, but {name} is of the family {other}.")


def _own_model(path: Path, found: Detected) -> tuple[nn.Module, Shapes]:
    with claiming(str(path), found.fields, [tensor.shape for tensor in found.tensors.values()]):
        model = create_model(found.source.family, **found.fields)
        return model, parameter_shapes(model)


def _provenance(path: Path, found: Detected) -> dict[str, Any]:
    """Returns a file's source, and what writing it back needs: its prefix and its dtype."""
    dtypes = {tensor.dtype.name for tensor in found.tensors.values() if is_float(tensor)}
    return {
        "source": found.source.name,
        "file": path.name,
        "format": found.source.format,
        "prefix": found.root.prefix.removesuffix(found.source.base),
        "dtype": dtypes.pop() if len(dtypes) == 1 else "float32",
    }


def _read_decoder(
    path: Path, decoder: Decoder, theirs: Tensors, encoder: nn.Module, found: Detected
) -> DecoderWeights:
    try:
        fields = decoder.fields(theirs, found.fields)
        shapes = parameter_shapes(create_pretraining(encoder.clone(num_classes=0), **fields))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    _, others = divide_encoder(shapes)
    return DecoderWeights(fields, apply_rules(theirs, decoder.rules, others, origin=str(path))[0])


def _variant(family: str, fields: Mapping[str, Any], name: str | None) -> str | None:
    """Returns the variant with these fields: the one called `name`, else the most specific one."""
    fits = [
        name
        for name, (other, sizes) in VARIANTS.items()
        if other == family and all(_is_size(fields, *size) for size in sizes.items())
    ]
    if name is not None and (named := resolve_name(name)[0]) in fits:
        return named
    return max(fits, key=lambda name: len(VARIANTS[name][1]), default=None)


def _is_size(fields: Mapping[str, Any], key: str, value: Any) -> bool:
    """Returns whether a field is a variant's; no trained file shows where LayerScale starts."""
    if key == "init_values":
        return bool(fields.get(key)) == bool(value)
    return fields.get(key) == value
