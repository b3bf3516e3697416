"""Writes goldens/models/timm_variants.json: what timm's ViTs, BEiTs and Swins are, by their names.

python tests/goldens/write_timm_names.py

Made with timm 1.0.31. Each model is built without memory, and its modules are read, under our
fields' names, for no table of timm's has all arguments: "hidden" is the width of the MLP, "windows"
are as they fit each stage, "parameters" are counted with 1000 classes. "models" have what differs
from "defaults"; a Swin has all. "others" are the names of models that no family of ours computes,
each with what it has that ours do not.
"""

import json
import math
import warnings
from pathlib import Path

import torch
from timm.layers import (
    AttentionPoolLatent,
    AttentionRope,
    GluMlp,
    Mlp,
    PatchEmbed,
    RelPosMlp,
    RmsNorm,
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    RotaryEmbeddingMixed,
    SwiGLU,
)
from timm.models import _registry, beit, create_model, eva
from timm.models import swin_transformer as swin_v1
from timm.models import swin_transformer_v2 as swin_v2
from timm.models import swin_transformer_v2_cr as swin_cr
from timm.models import vision_transformer as vit
from timm.models import vision_transformer_relpos as relpos
from timm.models.vision_transformer_hybrid import HybridEmbed
from torch import nn

MODULES = (
    "vision_transformer", "deit", "vision_transformer_hybrid", "beit", "eva", "swin_transformer",
    "swin_transformer_v2", "vision_transformer_relpos", "swin_transformer_v2_cr",
)  # fmt: skip
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}


PLAIN_ROTARY = {
    "rel_pos_dim": 128,
    "rope_type": "none", "rope_temperature": 10_000.0, "rope_grid_offset": 0.0,
    "rope_grid_indexing": "ij", "rope_rotate_half": False, "rope_ref_grid": None,
}  # fmt: skip


class OtherModelError(Exception):
    """A model that no family of ours computes."""


def need(holds, why):
    if not holds:
        raise OtherModelError(why)


def is_absent(*modules):
    return all(module is None or isinstance(module, nn.Identity) for module in modules)


def the_same(values):
    first, *others = values
    need(all(value == first for value in others), "blocks that differ")
    return first


def _names(kinds):
    return ", ".join(sorted(kind.__name__ for kind in kinds))


def side(sizes):
    sizes = tuple(map(int, sizes))
    return sizes[0] if len(set(sizes)) == 1 else sizes


def norm_fields(model):
    norms = [
        (name, module)
        for name, module in model.named_modules()
        if "norm" in name.rpartition(".")[2] and not is_absent(module) and "backbone" not in name
    ]
    for name, norm in norms:
        whole = isinstance(norm, nn.LayerNorm) and norm.bias is not None
        need(whole or isinstance(norm, RmsNorm), f"{name} {type(norm).__name__}")
    kinds = {nn.LayerNorm: "layernorm", RmsNorm: "rmsnorm"}
    kind = the_same([next(kinds[k] for k in kinds if isinstance(n, k)) for _, n in norms])
    return {"norm_eps": the_same([norm.eps for _, norm in norms]), "norm_layer": kind}


def describe_mlp(mlp):
    need(type(mlp) in (Mlp, GluMlp, SwiGLU), f"MLP {type(mlp).__name__}")
    split = type(mlp) is SwiGLU
    first = mlp.fc1_g if split else mlp.fc1
    biases = [layer.bias is not None for layer in (first, mlp.fc2)]
    fields = {"mlp_bias": the_same(biases), "scale_mlp_norm": not is_absent(mlp.norm)}
    act = type(mlp.act).__name__
    if type(mlp) is not Mlp:
        need(act == "SiLU" and not getattr(mlp, "gate_last", False), f"gate {act}")
        return {"hidden": (1 + split) * first.out_features, "act": "swiglu"} | fields
    need(act in ACTIVATIONS and getattr(mlp.act, "approximate", "none") == "none", f"act {act}")
    return {"hidden": first.out_features, "act": ACTIVATIONS[act]} | fields


def describe_patches(model):
    embed = model.patch_embed
    need(isinstance(embed.proj, nn.Conv2d), f"patches by {type(embed.proj).__name__}")
    fields = {
        "patch_bias": embed.proj.bias is not None,
        "patch_norm": type(embed) is PatchEmbed and not is_absent(embed.norm),
        "img_size": side(embed.img_size),
        "patch_size": side(embed.proj.kernel_size),
        "resnet_layers": None,
    }
    if type(embed) is PatchEmbed:
        return fields
    need(type(embed) is HybridEmbed, f"patches {type(embed).__name__}")
    kind = type(embed.backbone).__name__
    need(kind in ("ResNetV2", "Sequential"), f"backbone {kind}")
    for module in embed.backbone.modules():
        kind = type(module).__name__
        if isinstance(module, nn.Conv2d):
            need(kind == "StdConv2dSame" and module.eps == 1e-8, f"backbone {kind}")
        if isinstance(module, nn.GroupNorm):
            need(module.num_groups == 32 and module.eps == 1e-5, f"backbone {kind}")
    stages = getattr(embed.backbone, "stages", ())  # the root alone is a Sequential
    return fields | {"resnet_layers": [len(stage.blocks) for stage in stages]}


def describe_attention(blocks, width):
    kinds = {type(block.attn) for block in blocks}
    known = {vit.Attention, beit.Attention, eva.EvaAttention, AttentionRope, relpos.RelPosAttention}
    need(kinds <= known, f"attention {_names(kinds)}")
    for attn in (block.attn for block in blocks):
        need(math.isclose(attn.scale, (width // attn.num_heads) ** -0.5), "scale")
        need(getattr(attn, "gate", None) is None, "a gate of the attention")
        need(getattr(attn, "num_kv_groups", 1) == 1, "grouped queries")

    def has(attn, *names):
        return not all(is_absent(getattr(attn, name, None)) for name in names)

    return {
        "num_heads": the_same([block.attn.num_heads for block in blocks]),
        "qkv_bias": the_same([_biases(block.attn) for block in blocks]),
        "qk_norm": the_same([has(block.attn, "q_norm") for block in blocks]),
        "scale_attn_norm": the_same([has(block.attn, "norm") for block in blocks]),
        "proj_bias": the_same([block.attn.proj.bias is not None for block in blocks]),
    }


def _biases(attn):
    """False, True, or which of queries, keys and values have one."""
    joint = getattr(attn, "qkv", None)
    if joint is not None and joint.bias is not None:
        return True
    found = ""
    for part in "qkv":
        layer = getattr(attn, f"{part}_proj", None)
        own = getattr(attn, f"{part}_bias", None)
        if isinstance(own, nn.Parameter) or (layer is not None and layer.bias is not None):
            found += part
    if isinstance(attn, beit.Attention):
        return bool(found)
    return {"": False, "qkv": True}.get(found, found)


def layer_scale(block):
    if isinstance(block, eva.EvaBlockPostNorm):
        return None
    if isinstance(block, beit.Block | eva.EvaBlock):
        need((block.gamma_1 is None) == (block.gamma_2 is None), "LayerScale of attention only")
        return None if block.gamma_1 is None else block.init_values
    if isinstance(block, vit.ResPostBlock | relpos.ResPostRelPosBlock):
        return None
    return None if is_absent(block.ls1) else block.ls1.init_values


def describe_positions(model, prefix):
    if isinstance(model, beit.Beit):
        need(model.pos_embed is None and model.rel_pos_bias is None, "positions")
        return {"pos_embed": "relative", "pos_embed_at": "every", "no_embed_class": False}
    rotary = describe_rotary(getattr(model, "rope", None))
    if isinstance(model, relpos.VisionTransformerRelPos):
        return describe_relative(model)
    if model.pos_embed is None:
        need(rotary != PLAIN_ROTARY, "no positions")
        none = {"pos_embed": "none", "pos_embed_at": "input", "no_embed_class": False}
        return none | rotary
    without = model.pos_embed.shape[1] - model.patch_embed.num_patches
    need(without in (0, prefix), "positions")
    return {
        "pos_embed": "learned",
        "pos_embed_at": "input",
        "no_embed_class": without == 0 and prefix > 0,
        **rotary,
    }


def describe_relative(model):
    shared = model.shared_rel_pos
    mlps = [shared] if shared else [block.attn.rel_pos for block in model.blocks]
    need(all(type(mlp) is RelPosMlp and mlp.mode == "cr" for mlp in mlps), "biases")
    return PLAIN_ROTARY | {
        "pos_embed": "relative_mlp",
        "pos_embed_at": "shared" if shared else "every",
        "rel_pos_dim": the_same([mlp.mlp.fc1.out_features for mlp in mlps]),
        "no_embed_class": False,
    }


def describe_rotary(rope):
    if rope is None:
        return PLAIN_ROTARY
    kinds = {
        RotaryEmbeddingCat: "axial", RotaryEmbeddingDinoV3: "centred", RotaryEmbeddingMixed: "mixed"
    }  # fmt: skip
    need(type(rope) in kinds, f"positions {type(rope).__name__}")
    need(getattr(rope, "normalize_coords", "separate") == "separate", "normalisation of places")
    need(not getattr(rope, "in_pixels", False), "bands by pixels")
    fields = {
        "type": kinds[type(rope)],
        "temperature": rope.temperature,
        "grid_offset": getattr(rope, "grid_offset", 0.0),
        "grid_indexing": rope.grid_indexing,
        "rotate_half": getattr(rope, "rotate_half", False),
        "ref_grid": getattr(rope, "ref_feat_shape", None),
    }
    return {f"rope_{key}": value for key, value in fields.items()}


def describe_pool(model, fields):
    pool = model.global_pool
    need(pool in ("token", "avg", "map"), f"pool {pool}")
    own = {"pool_include_prefix": getattr(model, "pool_include_prefix", False)}
    attention = getattr(model, "attn_pool", None)
    if pool == "map":
        need(type(attention) is AttentionPoolLatent and attention.latent_len == 1, "pool")
        own["pool_include_prefix"] |= isinstance(model, eva.Eva)
        heads, mlp = attention.num_heads, describe_mlp(attention.mlp)
        own["pool_heads"] = None if heads == fields["num_heads"] else heads
        ratio = None if mlp["hidden"] == fields["hidden"] else mlp["hidden"] / model.embed_dim
        own["pool_mlp_ratio"] = ratio
        need(mlp["act"] == fields["act"], "activation of the pool")
    normed = [not is_absent(norm) for norm in (model.norm, model.fc_norm)]
    need(sum(normed) < 2, "two norms after the blocks")
    own = {"pool_heads": None, "pool_mlp_ratio": None} | own
    return own | {"global_pool": pool, "fc_norm": normed[1], "final_norm": any(normed)}


def describe_vit(model):
    width, blocks = model.embed_dim, list(model.blocks)
    kinds = {type(block) for block in blocks}
    after = {vit.ResPostBlock, eva.EvaBlockPostNorm, relpos.ResPostRelPosBlock}
    known = {vit.Block, beit.Block, eva.EvaBlock, relpos.RelPosBlock, *after}
    need(kinds <= known, f"blocks {_names(kinds)}")
    registers = getattr(model, "reg_token", None)
    fields = {
        "family": "vit",
        "embed_dim": width,
        "depth": len(blocks),
        **norm_fields(model),
        "norm_at": the_same(["after" if type(block) in after else "before" for block in blocks]),
        "init_values": the_same(list(map(layer_scale, blocks))),
        "class_token": model.cls_token is not None,
        "dist_token": getattr(model, "dist_token", None) is not None,
        "reg_tokens": 0 if registers is None else registers.shape[1],
        "pre_norm": not is_absent(getattr(model, "norm_pre", None)),
        **describe_patches(model),
        **describe_attention(blocks, width),
        **the_same([describe_mlp(block.mlp) for block in blocks]),
    }
    prefix = fields["class_token"] + fields["dist_token"] + fields["reg_tokens"]
    need(prefix == model.num_prefix_tokens, "prefix")
    return fields | describe_positions(model, prefix) | describe_pool(model, fields)


def describe_swin(model):
    cr = isinstance(model, swin_cr.SwinTransformerV2Cr)
    stages = [list(layer.blocks) for layer in (model.stages if cr else model.layers)]
    attention = stages[0][0].attn
    biases = attention.qkv.bias, getattr(attention, "q_bias", None)
    width = stages[0][0].mlp.fc1.in_features
    mlps = [
        (mlp["hidden"] / 2**stage, mlp["act"])
        for stage, blocks in enumerate(stages)
        for mlp in [describe_mlp(block.mlp) for block in blocks]
    ]
    hidden, act = the_same(mlps)
    kinds = {swin_v1.SwinTransformer: "swin", swin_cr.SwinTransformerV2Cr: "swinv2_cr"}
    fields = {
        "family": kinds.get(type(model), "swinv2"),
        "embed_dim": width,
        "depths": list(map(len, stages)),
        "norm_eps": norm_fields(model)["norm_eps"],
        "num_heads": [the_same([b.attn.num_heads for b in blocks]) for blocks in stages],
        "windows": [the_same([list(b.window_size) for b in blocks]) for blocks in stages],
        "hidden": int(hidden),
        "act": act,
        "patch_size": side(model.patch_embed.patch_size),
        "img_size": side(model.patch_embed.img_size),
        "patch_norm": not is_absent(model.patch_embed.norm),
        "ape": getattr(model, "absolute_pos_embed", None) is not None,
        "qkv_bias": any(bias is not None for bias in biases),
    }
    need(model.head.global_pool.pool_type == "avg", "pool")
    if cr:
        normed = [[not is_absent(b.norm3) for b in blocks] for blocks in stages]
        fields["extra_norm_stage"] = normed[0][-1]
        fields["extra_norm_period"] = 1 + (
            normed[2][:-1].index(True) if any(normed[2][:-1]) else -1
        )
    if fields["family"] == "swinv2":
        before = [int(blocks[0].attn.pretrained_window_size[0]) for blocks in stages]
        fields["pretrained_window_sizes"] = before
    return fields


def describe(name):
    with torch.device("meta"):
        model = create_model(name, num_classes=1000)
    swins = (
        swin_v1.SwinTransformer, swin_v2.SwinTransformerV2, swin_cr.SwinTransformerV2Cr
    )  # fmt: skip
    fields = describe_swin(model) if isinstance(model, swins) else describe_vit(model)
    return fields | {"parameters": sum(tensor.numel() for tensor in model.parameters())}


def main():
    warnings.filterwarnings("ignore")
    models, others = {}, {}
    names = {name for module in MODULES for name in _registry._module_to_models[module]}
    for name in sorted(names - _registry._deprecated_models.keys()):
        try:
            models[name] = describe(name)
        except OtherModelError as other:
            others[name] = str(other)
    defaults = models["vit_base_patch16_224"]
    rows = {
        name: {key: x for key, x in fields.items() if key != "family" and defaults[key] != x}
        if fields["family"] == "vit"
        else fields
        for name, fields in models.items()
    }
    lines = [f'"defaults": {json.dumps(defaults)}', f'"others": {json.dumps(others, indent=1)}']
    lines.append(f'"models": {{\n{_lines(rows)}\n}}')
    path = Path(__file__).parent / "models" / "timm_variants.json"
    path.write_text("{" + ",\n".join(lines) + "}\n")


def _lines(rows):
    return ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())


if __name__ == "__main__":
    main()
