"""Files of architectures that are not here: refused by name, whatever else they look like."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from parity import GOLDENS

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.read import Contents
from vitswin_jax.weights.formats.tensors import Tensor
from vitswin_jax.weights.locate import Located
from vitswin_jax.weights.sources.others import other_architecture
from vitswin_jax.weights.sources.read import read_original

TIMMS = json.loads(gzip.decompress((GOLDENS.parent / "models/timm_others.json.gz").read_bytes()))
"""timm's name -> its first tensors' names and shapes, of every architecture that is not here."""


def unread(shapes):
    return {name: Tensor(tuple(shape), np.dtype("f4"), never) for name, shape in shapes.items()}


def never():
    raise AssertionError("a tensor of a file that is refused was read")


@pytest.mark.parametrize("name", TIMMS)
def test_no_other_architecture_of_timm_loads_without_a_name(name):
    located = Located(Path("/x/y.safetensors"))
    with pytest.raises(UserError) as raised:
        read_original(located, Contents("safetensors", unread(TIMMS[name])), None, {})
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("key", "architecture"),
    [
        ("features.1.0.attn.cpb_mlp.0.weight", None),
        ("encoder.layers.0.rms_norm1.weight", None),
        ("teacher.backbone.storage_tokens", None),
        ("backbone.stages.0.blocks.0.attn.w_msa.qkv.weight", "mmpretrain's Swin Transformer"),
        ("module.swinViT.layers1.0.blocks.0.norm1.weight", "MONAI's Swin UNETR"),
        ("beit.encoder.layer.0.lambda_1", None),
        ("blocks.0.attn.qkv.weight", None),
        ("layers.0.blocks.0.attn.q_bias", None),
    ],
)
def test_an_architecture_is_known_by_what_only_it_has(key, architecture):
    assert other_architecture(["patch_embed.proj.weight", key]) == architecture
