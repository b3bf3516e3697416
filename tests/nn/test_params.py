"""Each parameter of each model has one row of facts, and kernels and biases agree about theirs."""

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict
from kinds import mostly_long

from vitswin_jax import create_model
from vitswin_jax.models.pretraining import create_pretraining
from vitswin_jax.models.registry import FAMILIES
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.nn.params import PARAMETERS, facts, uncovered

VIT, SWIN, MOE = (
    next(name for name in VARIANTS if name.startswith(start))
    for start in ("vit_tiny_patch16", "swin_tiny", "swin_moe_small")
)
MODELS = {
    **{name: (name, {}) for name in ("vit_base_r50_s16_384", "vit_base_patch14_reg4_dinov2",
                                     "vit_base_patch16_clip_224", "vit_base_patch16_siglip_224",
                                     "deit_base_distilled_patch16_224", SWIN, MOE,
                                     "swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224",
                                     "swin_mlp_tiny_c24_patch4_window8_256")},
    "pre_logits": (VIT, {"pre_logits": 64}),
    "stem": (VIT, {"stem": (8, 16)}),
    "positions_by_axis": (VIT, {"pos_embed": "learned2d", "class_token": False,
                                "global_pool": "avg"}),
    "positions_in_blocks": (VIT, {"pos_embed_at": "every"}),
    "relative": (VIT, {"pos_embed": "relative", "pos_embed_at": "every"}),
    "relative_shared": (VIT, {"pos_embed": "relative", "pos_embed_at": "shared"}),
    "relative_mlp": (VIT, {"pos_embed": "relative_mlp", "pos_embed_at": "every",
                           "global_pool": "query"}),
    "rotary": (VIT, {"rope_type": "mixed", "norm_layer": "rmsnorm", "qk_norm": True,
                     "scale_attn_norm": True, "scale_mlp_norm": True, "qkv_bias": "qv",
                     "act": "swiglu", "norm_at": "both", "init_values": 1.0}),
    "absolute": (SWIN, {"ape": True}),
    "cosine_router": (MOE, {"router": "cosine"}),
    "simmim": (SWIN, {"method": "simmim"}),
    "mae": (VIT, {"method": "mae"}),
    "dino": (VIT, {"method": "dino"}),
}  # fmt: skip


SHORT = [SWIN, MOE, "vit_base_patch14_reg4_dinov2", "relative_mlp", "rotary", "mae"]


def shapes_of(name, *, method=None, **fields):
    """The shape of each parameter, by its path, of a model with two blocks in each stage."""
    depth = {"depth": 2} if VARIANTS[name][0] == "vit" else {"depths": (2, 2, 2, 2)}
    model = create_model(name, **depth, **fields, **({"num_classes": 0} if method else {}))
    size = model.img_size
    if method:
        model = create_pretraining(model, method=method)
    keys = {stream: jax.random.key(0) for stream in ("params", "dropout", "mask")}
    shapes = jax.eval_shape(model.init, keys, jnp.zeros((1, size, size, 3)))["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()}


def test_each_family_is_here():
    assert {VARIANTS[name][0] for name, _ in MODELS.values()} == set(FAMILIES)


def block_of(path, shape):
    """The shape of one block's part of a parameter."""
    return shape["blocks/" in path or "pairs/" in path :]


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("case", mostly_long(MODELS, SHORT))
def test_each_parameter_has_one_row(case, scan):
    """A mesh divides axes that a parameter has."""
    name, fields = MODELS[case]
    shapes = shapes_of(name, scan=scan, **fields)
    assert len(shapes) > 15 and not uncovered(shapes)
    for path, shape in shapes.items():
        assert len(facts(path).mesh) <= len(block_of(path, shape)), path


@pytest.mark.parametrize("case", mostly_long(MODELS, SHORT))
def test_the_axes_of_a_kernels_output_are_those_of_the_bias_added_to_it(case):
    """In size, and on the mesh; adapters and int8 need the inputs to be the leading axes."""
    name, fields = MODELS[case]
    shapes = {path: block_of(path, shape) for path, shape in shapes_of(name, **fields).items()}
    biased = {path: f"{path.removesuffix('kernel')}bias" for path in shapes if "kernel" in path}
    checked = 0
    for path, bias in biased.items():
        row, shape = facts(path), shapes[path]
        if row.matrix is None or bias not in shapes:
            continue
        checked += 1
        inputs = {len(shape) + axis for axis in row.matrix[0]}
        outputs = [axis for axis in range(len(shape)) if axis not in inputs]
        assert tuple(shape[axis] for axis in outputs) == shapes[bias], path
        mesh, bias_mesh = ((*its.mesh, *[None] * len(shape)) for its in (row, facts(bias)))
        divided = [mesh[axis] == "tensor" for axis in outputs]
        assert divided == [axis == "tensor" for axis in bias_mesh[: len(outputs)]], path
        assert set(row.uses) <= {"muon"} or inputs == set(range(len(inputs))), path
    assert checked >= 7


@pytest.mark.long
def test_each_row_has_a_parameter():
    used = {facts(path) for name, fields in MODELS.values() for path in shapes_of(name, **fields)}
    beside = ("block_0/attn/qkv/lora_a", "distill/patches/kernel")  # of no model, but of training
    assert set(PARAMETERS) - used == {facts(path) for path in beside}


def test_a_path_without_a_row_or_with_two_raises(monkeypatch):
    with pytest.raises(ValueError, match=r"no row of .*PARAMETERS covers head/kernle"):
        facts("head/kernle")
    again = PARAMETERS[0]._replace(pattern="block_9/attn/qkv/kernel")
    monkeypatch.setattr("vitswin_jax.nn.params.PARAMETERS", (*PARAMETERS, again))
    with pytest.raises(ValueError, match=r"'attn.*', 'block_9/.*' .* covers block_9/attn/qkv/ker"):
        facts.__wrapped__("block_9/attn/qkv/kernel")  # another test may have filled the cache
