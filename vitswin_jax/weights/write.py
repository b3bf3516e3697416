"""Our parameters as another code's file: the tables of reading, backwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.choices import one_of
from vitswin_jax.core.types import UserError
from vitswin_jax.models.registry import model_kwargs
from vitswin_jax.weights.formats.pth_write import write_pth
from vitswin_jax.weights.sources.detect import SOURCES
from vitswin_jax.weights.sources.masked import DECODERS, Decoder
from vitswin_jax.weights.sources.rules import write_rules
from vitswin_jax.weights.sources.source import UNGATED, Source, misfits

FORMATS = tuple(dict.fromkeys(source.format for source in SOURCES if source.holds))
"""Whose files can be written, besides our own."""

_PTH = (".pth", ".pt", ".bin")
_SUFFIXES = {
    "google": (".npz",),
    "microsoft": _PTH,
    "torchvision": _PTH,
    "timm": (".safetensors", *_PTH),
    "huggingface": (".safetensors", *_PTH),
}

Buffers = Callable[[str], Mapping[str, np.ndarray]]
"""From a buffer's name to its arrays, by the names of the blocks of ours that have it."""


def choose_target(format: str, family: str, fields: Mapping[str, Any], *, origin: str) -> Source:
    """Returns the source of a format whose code can compute a model.

    Raises UserError for an unknown format, a family it does not have, and the fields it cannot
    have, all listed.
    """
    one_of("format", format, ("native", *FORMATS))
    targets = [s for s in SOURCES if s.holds and s.format == format and s.family == family]
    tried = [(s, misfits(holds, fields)) for s in targets for holds in s.holds]
    for source, wrong in tried:
        if not wrong:
            return source
    nearest = min((wrong for _, wrong in tried), key=len, default=[])
    plain = model_kwargs(family)
    shared = {field for field in nearest if plain.get(field) == fields[field]}
    if all(shared.intersection(misfits(holds, plain)) for s in targets for holds in s.holds):
        has = [s for s in SOURCES if s.family == family for h in s.holds if not misfits(h, plain)]
        others = ", ".join(sorted({source.format for source in has}))
        raise UserError(f"{origin}: the format {format} cannot hold {family}; use {others}.")
    listed = ", ".join(f"{field}={fields[field]!r}" for field in nearest)
    raise UserError(f"{origin}: the format {format} cannot hold {family} with {listed}.")


def choose_decoder(format: str, method: str, *, origin: str) -> Decoder:
    """Returns how a format has the decoder of a method; raises UserError where it has none."""
    known = {decoder.method: decoder for decoder in DECODERS}
    if method not in known or known[method].format != format:
        others = f"; {known[method].format} has it" if method in known else ""
        raise UserError(f"{origin}: {format} has no decoder of {method}{others}, and native.")
    return known[method]


def as_theirs(
    source: Source, tensors: Mapping[str, np.ndarray], buffers: Buffers, *, origin: str
) -> dict[str, np.ndarray]:
    """Returns our arrays under their names and in their layouts, with recomputed buffers."""
    arrays = write_rules(tensors, source.rules, origin=origin)
    for kind in source.buffers:
        for place, array in buffers(kind).items():
            arrays[_buffer_name(source, arrays, place, kind)] = array
    try:
        arrays = source.restore(arrays)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    if source.bare and all(name.startswith(source.base) for name in arrays):
        return {name.removeprefix(source.base): array for name, array in arrays.items()}
    return arrays


def write_file(path: Path, arrays: Mapping[str, Any], source: Source) -> None:
    """Writes arrays under their names in the format of their code, by the path's suffix.

    Raises UserError for a suffix that the code does not read, and where the file cannot be written.
    """
    suffixes = _SUFFIXES[source.format]
    if path.suffix not in suffixes or path.is_dir():
        raise UserError(
            f"{path}: {source.format} files end in {' or '.join(suffixes)}, not "
            f"{'a folder' if path.is_dir() else repr(path.suffix)}."
        )
    if path.suffix == ".npz":
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    elif path.suffix == ".safetensors":
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        with replacing(path) as temporary:
            try:
                safetensors.numpy.save_file(contiguous, temporary, metadata={"format": "pt"})
            except SafetensorError as error:
                raise OSError(str(error)) from error
    else:
        write_pth(path, arrays, wrapper=source.wrapper)


def computes_otherwise(theirs: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of their numeric details, such as `Source.numerics`, that differ from ours."""
    return {
        field: value
        for field, value in theirs.items()
        if field in fields and fields[field] != value
        if field != "act" or fields[field] in UNGATED  # shapes show a gate over there too
    }


def _buffer_name(source: Source, arrays: Mapping[str, np.ndarray], place: str, kind: str) -> str:
    """Returns a buffer's name from that of a parameter of the same block; "": all share it."""
    if not place:
        return f"rel_pos_bias.{kind}"
    block = write_rules({f"{place}/norm1/bias": np.zeros(1)}, source.rules, origin=place)
    (norm,) = block
    block_name = norm[: norm.rindex(".", 0, norm.rindex("."))]
    if kind == "attn_mask":
        return f"{block_name}.{kind}"
    attention = "attention.self" if source.format == "huggingface" else "attn"
    return f"{block_name}.{attention}.{kind}"
