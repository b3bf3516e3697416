"""Weights files of every source as one object, `Pretrained`; each file is opened and parsed once.

The rooms, in the order in which opening enters them: `locate` finds the file, `formats` parses it
into unread tensors, `sources` gives them our names, and `models` has the shapes that they must fit.
Only then does `Pretrained.variables` read a number.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh
from jax.typing import DTypeLike

from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError, listed, naming
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.claims import claiming
from vitswin_jax.models.pretraining import create_pretraining, describe_method
from vitswin_jax.models.registry import create_model, family_of
from vitswin_jax.models.unlabelled import UnlabelledModel, divide_encoder
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights.adapt import Methods, adapt, check_parameters
from vitswin_jax.weights.formats.read import Contents, read_tensors
from vitswin_jax.weights.formats.tensors import Tensor, is_float, shapes_of
from vitswin_jax.weights.locate import Located, locate
from vitswin_jax.weights.metadata import Metadata, without_accuracy
from vitswin_jax.weights.place import layout_on, param_dtype_of, read_onto
from vitswin_jax.weights.published import class_names
from vitswin_jax.weights.shapes import parameter_shapes, sizes_of
from vitswin_jax.weights.sources.masked import DecoderWeights
from vitswin_jax.weights.sources.preprocess import averaged, default_preprocess
from vitswin_jax.weights.sources.read import check_family, read_original
from vitswin_jax.weights.sources.source import UNSEEN

log = logger(__name__)

NUMERICS = (
    "act", "norm_eps", "window_clip", "pad_before_roll", "global_pool", "window_size",
    "pretrained_window_sizes", "num_heads", "img_size", "group_norm_eps", "weight_var_eps",
    "weight_std_eps", "mask_value", "capacity_over", *UNSEEN,
)  # fmt: skip
"""Fields that are a code's own, or that not every format's file shows."""


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model from a weights file of any source, and all that the file states about it.

    `open_pretrained` creates it. Opening reads only the header of the file; `variables` reads the
    tensors, on first use.

    Attributes:
        file: the path of the weights file, even if a folder or a published name was given.
        model: the Linen module: the model of the file with the fields that you passed.
        variables: the variables of `model`, {"params": ...}, float32 arrays on the default device.
        preprocess: a function from an image, uint8 (h, w, c) in [0, 255] or encoded bytes, to the
            input of `model`, float32 (H, W, c).
        class_names: a name for each of the `num_classes` classes.
        fields: the fields of `model`, as `create_model` takes them.
        provenance: the origin of the weights: dataset, split, step, source, published accuracy.
        multi_label: whether an image may have several classes, each with its own sigmoid.
        metadata: these facts as one object, which `save_pretrained` takes.
        own: the model as the file has it, before your fields.
        tensors: the parameters of `own`, unread, with the names and layouts of this package.
        methods: how the source adapts tensors to other sizes.
        open_decoder: opens the decoder of a model that was pre-trained without labels, or None.

    >>> import jax
    >>> import numpy as np
    >>> import vitswin_jax
    >>> fields = dict(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    >>> model = vitswin_jax.create_model("vit", **fields)
    >>> variables = jax.jit(model.init)(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 3)))
    >>> path = vitswin_jax.save_pretrained("small.safetensors", model, variables)
    >>> vit = vitswin_jax.open_pretrained(path)
    >>> image = vit.preprocess(np.zeros((40, 30, 3), np.uint8))
    >>> image.shape, jax.jit(vit.model.apply)(vit.variables, image[None]).shape
    ((8, 8, 3), (1, 3))
    >>> vit.changed(img_size=16).model.img_size
    16
    """

    file: Path
    model: nn.Module
    metadata: Metadata
    own: nn.Module = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)
    methods: Methods = field(repr=False, default_factory=Methods)
    open_decoder: Callable[[], DecoderWeights] | None = field(repr=False, default=None)

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """The variables of `model` on the default device; the tensors are read on first use.

        The log has one line for each adaptation.
        """
        return self.variables_for(self.model)

    @functools.cached_property
    def preprocess(self) -> Preprocess:
        """The function from an image, uint8 (h, w, c), to input of the model, float32 (H, W, c).

        It is the preprocessing that the file states, or else the default of the file's source
        (`default_preprocess`), at the image size and for the channels of `model`.
        """
        base = self.metadata.preprocess or default_preprocess(self.own, self.metadata.name)
        fitted = base.fitted(pair(self.model.img_size), self.model.in_chans)
        if fitted.channels != base.channels:
            log.info("%s: %s", self.file, averaged(base, fitted))
        return fitted

    @property
    def fields(self) -> Mapping[str, Any]:
        """The model's fields, as `create_model` takes them."""
        return self.metadata.fields

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The origin of the weights: dataset, split, step, source, published accuracy."""
        return self.metadata.provenance

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several of the classes, so that each has its own sigmoid."""
        return bool(self.provenance.get("multi_label", False))

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """A name for each class: from the file, or its published list, or else `class 0`, ..."""
        count = self.model.num_classes
        names = self.metadata.class_names or class_names(self.provenance.get("class_list")) or ()
        return names if len(names) == count else tuple(f"class {i}" for i in range(count))

    def changed(self, **fields: Any) -> Pretrained:
        """Returns the same weights for a model with other fields, such as `img_size`.

        Its metadata keeps no class names of another head and no accuracy of another function.
        """
        old, merged = self.model, {**self.metadata.fields, **fields}
        model, kept = create_model(self.metadata.name, **merged), dict(self.provenance)
        others = ("num_classes", *NUMERICS)
        if any(getattr(model, key, None) != getattr(old, key, None) for key in others):
            kept = without_accuracy(kept)
        names = self.metadata.class_names if model.num_classes == old.num_classes else None
        metadata = dataclasses.replace(
            self.metadata, fields=merged, class_names=names, provenance=kept
        )
        return dataclasses.replace(self, model=model, metadata=metadata)

    def adapted_to(
        self, model: nn.Module, *, fresh_head: bool = False
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Returns the parameters of any model, flat and unread, and a line for each adaptation.

        Raises UserError that lists all that cannot be adapted; see `weights.adapt`.
        """
        if isinstance(model, UnlabelledModel):
            return self._adapted_to_pretraining(model)
        return adapt(
            self.tensors,
            parameter_shapes(model),
            old=sizes_of(self.own),
            new=sizes_of(model),
            methods=self.methods,
            origin=str(self.file),
            fresh_head=fresh_head,
        )

    def variables_for(
        self,
        model: nn.Module,
        *,
        mesh: Mesh | None = None,
        param_dtype: DTypeLike = "float32",
    ) -> dict[str, Any]:
        """Returns the variables of any model in its layout, on the default device or a mesh.

        On a mesh (`train.sharding.create_mesh`) each device gets only its part, and the host holds
        one large tensor at a time. `param_dtype` is "float32", "bfloat16" or "float16".
        """
        tensors, notes = self.adapted_to(model)
        for note in notes:
            log.info("%s: %s", self.file, note)
        dtype = param_dtype_of(param_dtype)
        return {"params": read_onto(tensors, mesh, dtype=dtype, scan=model.scan)}

    def layout(
        self, mesh: Mesh, *, param_dtype: DTypeLike = "float32"
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shape, dtype and sharding of each parameter of `model`; reads no tensor."""
        return layout_on(self.adapted_to(self.model)[0], mesh, dtype=param_dtype_of(param_dtype))

    def pretraining_model(self) -> UnlabelledModel:
        """Returns `model` with the decoder and the masks of its pre-training.

        Raises UserError for a file without a decoder.
        """
        return create_pretraining(self.model, **self._decoder.fields)

    @functools.cached_property
    def _decoder(self) -> DecoderWeights:
        if self.open_decoder is None:
            raise UserError(
                f"{self.file}: has no decoder, so pre-training cannot continue from it."
            )
        return self.open_decoder()

    def _adapted_to_pretraining(
        self, model: UnlabelledModel
    ) -> tuple[dict[str, Tensor], list[str]]:
        theirs = describe_method(create_pretraining(self.own, **self._decoder.fields))
        ours = describe_method(model)
        if theirs["method"] != ours["method"]:
            raise UserError(
                f"{self.file}: was pre-trained by {theirs['method']}, and pretrain.method="
                f"{ours['method']!r}."
            )
        encoder, notes = self.adapted_to(model.encoder)
        notes += [
            f"{key} is {ours[key]!r}, the file's {theirs[key]!r}"
            for key in self.metadata.pretrain or ()  # files of other codes do not show them
            if ours[key] != theirs[key]
        ]
        tensors = {f"encoder/{name}": tensor for name, tensor in encoder.items()}
        tensors |= self._decoder.tensors
        found = shapes_of(tensors)
        check_parameters(found, parameter_shapes(model), origin=str(self.file))
        return tensors, notes


def open_pretrained(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    **fields: Any,
) -> Pretrained:
    """Opens a weights file of any source; reads no tensor yet.

    The file decides sizes and numeric details, so the model gives the outputs of the original. The
    log lists all adaptations and the unused tensors.

    Args:
        path: a file of any source, a folder of the Hugging Face hub, or a run's workdir (`runs/x`,
            `runs/x@1200`, `runs/x@best`). If no such path exists: a published name
            (`augreg/B_16-...`; `vitswin models --sources` lists them) or a name of the hub
            (`hf-hub:org/name[@revision]`), which is downloaded once. `FILE@KEY` chooses one of
            several copies of a model, as in `checkpoint.pth.tar@state_dict`.
        name: the variant (`model_names`); it supplies only what the file does not show. None: the
            variant that `config.json`, the file or the file's own name (`VARIANT.pth`) states.
        num_classes: None: as in the file. 0: no head. Another number than in the file gives a new
            head of zeros, unless the source maps its classes.
        img_size: pixels, int or (height, width). None: as in the file. Another size resizes
            position tables by the method of the source; so does another `window_size`.
        **fields: other fields of the model (`create_model`); `scan=True` stacks the variables of
            equal blocks, and `dtype` is the dtype of the computation.

    Returns:
        A `Pretrained`: `model`, `variables`, `preprocess`, `class_names`, `metadata`, ...

    Raises:
        UserError: the file cannot be read; the file does not show a fact (with the candidates); an
            argument contradicts the tensors; or keys are missing, unknown or of another shape.

    >>> import jax
    >>> import vitswin_jax
    >>> fields = dict(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    >>> model = vitswin_jax.create_model("vit", **fields)
    >>> variables = jax.jit(model.init)(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 3)))
    >>> path = vitswin_jax.save_pretrained("small.safetensors", model, variables)
    >>> opened = vitswin_jax.open_pretrained(path)
    >>> opened.class_names, opened.model.num_classes, opened.file.name
    (('class 0', 'class 1', 'class 2'), 3, 'small.safetensors')
    """
    asked = {"num_classes": num_classes, "img_size": img_size}
    asked = {key: value for key, value in asked.items() if value is not None} | fields
    if asked.get("window_size", 0) is None:
        del asked["window_size"]
    return open_own(path, name, **asked).changed(**asked)


def open_own(
    path: str | os.PathLike[str] | Located, name: str | None = None, **hints: Any
) -> Pretrained:
    """Opens a weights file as the model that the file has; otherwise as `open_pretrained`.

    `name` (a variant) and `hints` (fields) supply only what neither the file nor the `config.json`
    beside it (`Located.beside`) shows.
    """
    located = path if isinstance(path, Located) else locate(path)
    contents = read_tensors(located.file)
    if contents.metadata is not None:
        if located.key is not None:
            raise UserError(
                f"{located.file}: is a native file with one model, and has no {located.key!r}."
            )
        return _open_native(located.file, contents, contents.metadata, name)
    found = read_original(located, contents, name, hints)
    with naming(located.file):
        preprocess = Preprocess.from_json(pair(found.model.img_size), **found.images)
    metadata = Metadata(
        name=found.name,
        fields=found.fields,
        preprocess=preprocess,
        class_names=found.class_names,
        provenance={**found.training.provenance, **found.provenance, **located.provenance},
        metrics=found.training.metrics,
        train_class_counts=found.training.train_class_counts,
    )
    model, tensors, source = found.model, found.tensors, found.source
    methods = Methods(source.pos_embed, source.bias_table, source.head_rows)
    return Pretrained(
        located.file, model, metadata, model, tensors, methods, open_decoder=found.open_decoder
    )


def _open_native(
    path: Path, contents: Contents, stated: Mapping[str, Any], name: str | None
) -> Pretrained:
    metadata = Metadata.from_json(stated, origin=str(path))
    tensors = contents.tensors
    found = shapes_of(tensors)
    with claiming(str(path), {**metadata.fields, **(metadata.pretrain or {})}, found.values()):
        whole = model = create_model(metadata.name, **metadata.fields)
        if metadata.pretrain is not None:
            whole = create_pretraining(model, **metadata.pretrain)
        shapes = parameter_shapes(whole)
    if name is not None:
        check_family(path, metadata.name, family_of(model), name)
    check_parameters(found, shapes, origin=str(path))
    wrong = [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if not is_float(tensor)]
    if wrong:
        raise UserError(f"{path}: these are no floating-point numbers: {listed(wrong)}.")
    open_decoder = None
    if metadata.pretrain is not None:
        tensors, others = divide_encoder(tensors)
        open_decoder = functools.partial(DecoderWeights, metadata.pretrain, others)
    return Pretrained(path, model, metadata, model, tensors, open_decoder=open_decoder)
