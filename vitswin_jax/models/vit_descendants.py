"""The published sizes of the ViT's descendants that change its blocks, as plain data.

Names are timm's, and the fields are those in which they differ from a ViT's defaults. Sources: EVA,
arXiv:2211.07636; EVA-02, arXiv:2303.11331; EVA-CLIP, arXiv:2303.15389; DINOv3, arXiv:2508.10104;
Perception Encoder, arXiv:2504.13181; RoPE-ViT, arXiv:2403.13298; LingBot-Vision, arXiv:2607.05247;
AIMv2, arXiv:2411.14402; BEiT-3, arXiv:2208.10442; RADIO, arXiv:2412.07679; InternViT,
arXiv:2504.10479; timm's own with registers and with norms after the branches.
tests/goldens/models/timm_variants.json was read from timm.
"""

from __future__ import annotations

from typing import Any

from vitswin_jax.models.vit_variants import SIZES, Fields, Variants

Rows = dict[str, Fields]

DINOV3: Fields = {
    "img_size": 256, "patch_size": 16, "norm_eps": 1e-5, "global_pool": "avg", "reg_tokens": 4,
    "pos_embed": "none", "init_values": 1e-5, "rope_type": "centred", "rope_temperature": 100.0,
    "rope_rotate_half": True, "qkv_bias": False,
}  # fmt: skip
GATED: Fields = {"act": "swiglu"}
DINOV3_SIZES: dict[str, Fields] = {
    "tiny": SIZES["tiny"],
    "small": SIZES["small"],
    "small_plus": SIZES["small"] | GATED | {"mlp_ratio": 8.0},
    "base": SIZES["base"],
    "large": SIZES["large"],
    "huge_plus": {"embed_dim": 1280, "depth": 32, "num_heads": 20, "mlp_ratio": 8.0} | GATED,
    "7b": {"embed_dim": 4096, "depth": 40, "num_heads": 32, "mlp_ratio": 4.0} | GATED,
}
LINGBOT_GIANT: Fields = {
    "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 16 / 3, "qkv_bias": False,
}  # fmt: skip

EVA: Fields = {"global_pool": "avg", "fc_norm": True, "qkv_bias": "qv"}
TOKEN: Fields = {"global_pool": "token", "fc_norm": False}
EVA02: Fields = EVA | GATED | {"rope_type": "axial", "rope_ref_grid": (16, 16)}
EVA02_SIZES: dict[str, tuple[float, tuple[int, ...], Fields]] = {  # MLP, img_sizes, own fields
    "tiny": (1024 / 192, (224, 336), {}),
    "small": (16 / 3, (224, 336), {}),
    "base": (16 / 3, (224, 448), {"scale_mlp_norm": True}),
    "large": (5460 / 1024, (224, 448), {"scale_mlp_norm": True}),
}

ROPE: Fields = {"init_values": 1e-5, "rope_grid_indexing": "xy"}
ROPE_KINDS: dict[str, Fields] = {
    "rope": {"rope_type": "axial", "rope_temperature": 100.0},
    "rope_mixed": {"rope_type": "mixed", "rope_temperature": 10.0},
}
ROPE_POSITIONS: dict[str, Fields] = {"": {"pos_embed": "none"}, "_ape": {"no_embed_class": True}}
ROPE_REGISTERS: Fields = {
    "class_token": False, "global_pool": "avg", "fc_norm": True, "pos_embed": "none",
    "init_values": 1e-5, "rope_type": "axial", "rope_ref_grid": (16, 16),
}  # fmt: skip

PE: Fields = {
    "pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "rope_type": "axial",
    "rope_grid_indexing": "xy", "rope_grid_offset": 1.0,
}  # fmt: skip
PE_CORE: Fields = {"global_pool": "map", "pool_include_prefix": True, "pool_heads": 8}
PE_MAPS: Fields = {"global_pool": "avg", "final_norm": False}
PE_GIGANTIC: Fields = {
    "embed_dim": 1536, "depth": 50, "num_heads": 16, "mlp_ratio": 8960 / 1536, "class_token": False,
    "rope_grid_offset": 0.0,
}  # fmt: skip
PE_TRAINED: Fields = {"init_values": 0.1}
PE_ROWS: dict[str, tuple[str, int, int, Fields]] = {  # size, patch_size, img_size, own fields
    **{
        f"core_{size}_patch{patch}_{image}": (size, patch, image, PE_CORE)
        for size, patch, image in (
            ("tiny", 16, 384), ("small", 16, 384), ("base", 16, 224), ("large", 14, 336),
        )
    },
    "core_gigantic_patch14_448": ("", 14, 448, PE_CORE | PE_GIGANTIC | {"pool_mlp_ratio": 4.0}),
    "lang_large_patch14_448": ("large", 14, 448, PE_MAPS | PE_TRAINED | {"depth": 23}),
    "lang_gigantic_patch14_448": ("", 14, 448, PE_MAPS | PE_GIGANTIC | PE_TRAINED | {"depth": 47}),
    **{
        f"spatial_{size}_patch{patch}_{image}": (size, patch, image, PE_MAPS)
        for size, patch, image in (
            ("tiny", 16, 512), ("small", 16, 512), ("base", 16, 512), ("large", 14, 448),
        )
    },
    "spatial_gigantic_patch14_448": ("", 14, 448, PE_MAPS | PE_GIGANTIC | PE_TRAINED),
}  # fmt: skip


def _dinov3() -> Rows:
    rows: Rows = {}
    for size, fields in DINOV3_SIZES.items():
        if size != "tiny":
            rows[f"vit_{size}_patch16_dinov3"] = fields | DINOV3
        if size != "7b":
            rows[f"vit_{size}_patch16_dinov3_qkvb"] = fields | DINOV3 | {"qkv_bias": "qv"}
    lingbot = DINOV3 | {"global_pool": "token", "qkv_bias": "qv", "img_size": 512}
    for size in ("small", "base", "large"):
        rows[f"vit_{size}_patch16_lingbot"] = SIZES[size] | lingbot
    rows["vit_giant_patch16_lingbot"] = lingbot | GATED | LINGBOT_GIANT
    return rows


def _eva() -> Rows:
    rows: Rows = {}
    giant = SIZES["giant"] | {"patch_size": 14} | EVA
    for img_size in (224, 336, 560):
        rows[f"eva_giant_patch14_{img_size}"] = giant | {"img_size": img_size}
    rows["eva_giant_patch14_clip_224"] = giant | TOKEN | {"img_size": 224}
    for size, (ratio, img_sizes, own) in EVA02_SIZES.items():
        fields = SIZES[size] | EVA02 | own | {"mlp_ratio": ratio, "patch_size": 14}
        for img_size in img_sizes:
            rows[f"eva02_{size}_patch14_{img_size}"] = fields | {"img_size": img_size}
        clip = fields | TOKEN | {"scale_attn_norm": True}
        if size == "base":
            rows["eva02_base_patch16_clip_224"] = clip | {"patch_size": 16, "img_size": 224}
        if size == "large":
            for img_size in (224, 336):
                rows[f"eva02_large_patch14_clip_{img_size}"] = clip | {"img_size": img_size}
    rows["eva02_enormous_patch14_clip_224"] = {
        "embed_dim": 1792, "depth": 64, "num_heads": 16, "mlp_ratio": 15360 / 1792,
        "patch_size": 14, "img_size": 224, "qkv_bias": "qv", "norm_at": "after",
    }  # fmt: skip
    return rows


def _rope() -> Rows:
    rows: Rows = {}
    for size in ("small", "base", "large"):
        for kind, own in ROPE_KINDS.items():
            for ending, positions in ROPE_POSITIONS.items():
                name = f"vit_{size}_patch16_{kind}{ending}_224"
                rows[name] = SIZES[size] | ROPE | own | positions
    for size, registers in (("medium", 1), ("mediumd", 1), ("betwixt", 4), ("base", 1)):
        own = {"reg_tokens": registers, "img_size": 256}
        own["qkv_bias"] = False if size == "mediumd" else "qv"
        name = f"vit_{size}_patch16_rope_reg{registers}_gap_256"
        rows[name] = SIZES[size] | ROPE_REGISTERS | own
    return rows


def _perception() -> Rows:
    rows: Rows = {}
    for ending, (size, patch, img_size, own) in PE_ROWS.items():
        side = img_size // patch
        sizes = {"patch_size": patch, "img_size": img_size, "rope_ref_grid": (side, side)}
        rows[f"vit_pe_{ending}"] = SIZES.get(size, {}) | PE | sizes | own
    return rows


AIMV2: Fields = {
    "patch_size": 14, "class_token": False, "global_pool": "avg", "norm_layer": "rmsnorm",
    "norm_eps": 1e-5, "patch_norm": True, "qkv_bias": False, "proj_bias": False, "mlp_bias": False,
    "act": "swiglu",
}  # fmt: skip
AIMV2_SIZES: dict[str, Fields] = {
    "large": {"embed_dim": 1024, "num_heads": 8, "mlp_ratio": 5.5},
    "huge": {"embed_dim": 1536, "num_heads": 12, "mlp_ratio": 16 / 3},
    "1b": {"embed_dim": 2048, "num_heads": 16, "mlp_ratio": 5.5},
    "3b": {"embed_dim": 3072, "num_heads": 24, "mlp_ratio": 16 / 3},
}
BEIT3: Fields = {
    "norm_eps": 1e-5, "scale_attn_norm": True, "scale_mlp_norm": True, "global_pool": "avg",
    "fc_norm": True,
}  # fmt: skip
BEIT3_IMAGES = {("base", 16): (224,), ("large", 16): (224,), ("giant", 14): (224, 336)}
RADIO: Fields = {"img_size": 512, "no_embed_class": True, "final_norm": False, "reg_tokens": 7}
RADIO_SIZES: dict[str, Fields] = {  # size and version
    "base_v3": SIZES["base"] | {"init_values": 1e-5},
    "large_v3": SIZES["large"] | {"init_values": 1e-5},
    "huge_v3": SIZES["huge"],
    "giant_v3": SIZES["giantopt"] | {"num_heads": 24},
    "so400m_v4": SIZES["so400m"] | {"reg_tokens": 9},
    "huge_v4": SIZES["huge"] | {"reg_tokens": 9},
}
RELPOS: Fields = {
    "class_token": False, "global_pool": "avg", "pos_embed": "relative_mlp", "init_values": 1e-6,
    "pos_embed_at": "every", "qkv_bias": False,
}  # fmt: skip
_BIASED: Fields = {"qkv_bias": True}
_AFTER: Fields = {"norm_at": "after", "init_values": None}
_CLS: Fields = {"class_token": True, "global_pool": "token"}
RELPOS_ROWS: dict[str, tuple[str, Fields]] = {  # size, own fields
    "base_patch32_plus_rpn_256": (
        "base_plus", _BIASED | _AFTER | {"patch_size": 32, "img_size": 256},
    ),
    "base_patch16_plus_240": ("base_plus", _BIASED | {"img_size": 240}),
    **{f"{size}_patch16_224": (size, {"fc_norm": True}) for size in ("small", "medium", "base")},
    "medium_patch16_cls_224": ("medium", _CLS | {"rel_pos_dim": 256}),
    "base_patch16_cls_224": ("base", _CLS),
    "base_patch16_clsgap_224": ("base", {"class_token": True, "fc_norm": True}),
    **{f"{size}_patch16_rpn_224": (size, _AFTER) for size in ("small", "medium", "base")},
}  # fmt: skip
TEST: Fields = {
    "img_size": 160, "embed_dim": 96, "depth": 9, "num_heads": 3, "class_token": False,
    "reg_tokens": 1, "init_values": 1e-5,
}  # fmt: skip
INTERN: Fields = {"patch_size": 14, "img_size": 448, "init_values": 0.1, "final_norm": False}


def _relative() -> Rows:
    rows = {
        f"vit_relpos_{name}": SIZES[size] | RELPOS | own
        for name, (size, own) in RELPOS_ROWS.items()
    }
    for size, width in (("small", 384), ("medium", 512)):
        shared = {"pos_embed_at": "shared", "rel_pos_dim": width}
        rows[f"vit_srelpos_{size}_patch16_224"] = SIZES[size] | RELPOS | shared
    small = {"img_size": 160, "embed_dim": 96, "depth": 9, "num_heads": 3, "mlp_ratio": 2.0}
    rows["test_vit_relpos"] = RELPOS | small | {"fc_norm": True}
    return rows


def _others() -> Rows:
    rows: Rows = {}
    for size, fields in AIMV2_SIZES.items():
        for img_size in (224, 336, 448):
            row = fields | AIMV2 | {"depth": 24, "img_size": img_size}
            rows[f"aimv2_{size}_patch14_{img_size}"] = row
    for (size, patch), img_sizes in BEIT3_IMAGES.items():
        for img_size in img_sizes:
            row = SIZES[size] | BEIT3 | {"patch_size": patch, "img_size": img_size}
            rows[f"beit3_{size}_patch{patch}_{img_size}"] = row
    for name, fields in RADIO_SIZES.items():
        size, version = name.split("_")
        rows[f"vit_{size}_patch16_radio_{version}"] = RADIO | fields
    rows["vit_intern300m_patch14_448"] = SIZES["large"] | INTERN
    rows["vit_base_patch16_rpn_224"] = {
        "norm_at": "after", "class_token": False, "qkv_bias": False, "global_pool": "avg",
        "fc_norm": True,
    }  # fmt: skip
    pool = {"global_pool": "map", "pool_include_prefix": True, "mlp_ratio": 2.0}
    rows["test_vit3"] = TEST | pool
    mean = {"global_pool": "avg", "fc_norm": True, "norm_layer": "rmsnorm", "mlp_ratio": 3.0}
    rows["test_vit4"] = TEST | mean
    return rows


DEFAULTS: Fields = {
    "patch_size": 16, "img_size": 224, "fc_norm": False, "global_pool": "token",
    "rope_grid_offset": 0.0, "mlp_ratio": 4.0, "qkv_bias": True, "init_values": None,
}  # fmt: skip


def _plain(fields: Fields) -> dict[str, Any]:
    """Returns a row without what every ViT has."""
    return {key: x for key, x in fields.items() if key not in DEFAULTS or DEFAULTS[key] != x}


VARIANTS: Variants = {
    name: ("vit", _plain(fields))
    for rows in (_dinov3(), _eva(), _rope(), _perception(), _relative(), _others())
    for name, fields in rows.items()
}
