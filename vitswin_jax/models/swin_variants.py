"""The published sizes of the Swin families, as plain data: fields that differ from the defaults.

Names are timm's, and Microsoft's where timm has none. Sources: Swin, section 3.3 and table 7 of
arXiv:2103.14030; Swin-T/C24 and Swin-MLP, the configurations of the official code; Swin V2, section
4.1 of arXiv:2111.09883; Swin-S3, table 6 of AutoFormerV2 (arXiv:2111.14725); Swin-MoE, the official
code's configurations (arXiv:2206.03382, section 5); Swin V2-CR, timm's code.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]
Variants = dict[str, tuple[str, Fields]]

SIZES: dict[str, Fields] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}

IMAGES: dict[str, tuple[tuple[int, int], ...]] = {  # (window_size, img_size)
    "tiny": ((7, 224),),
    "small": ((7, 224),),
    "base": ((7, 224), (12, 384)),
    "large": ((7, 224), (12, 384)),
}

S3: dict[str, Fields] = {  # a window for each stage
    "tiny": {"depths": (2, 2, 6, 2), "window_size": ((7, 7), (7, 7), (14, 14), (7, 7))},
    "small": {"depths": (2, 2, 18, 2), "window_size": ((14, 14), (14, 14), (14, 14), (7, 7))},
    "base": {"depths": (2, 2, 30, 2), "window_size": ((7, 7), (7, 7), (14, 14), (7, 7))},
}

V2_WINDOWS: dict[str, tuple[int, ...]] = {"tiny": (8, 16), "small": (8, 16), "base": (8, 16)}
V2_LARGER_WINDOWS = {256: 16, 384: 24}  # img_size -> window_size, after windows of 12 at 192

MOE_EXPERTS = {"small": (8, 16, 32, 64), "base": (8, 16, 32)}

CR_SIZES: dict[str, Fields] = {  # the two that only timm's Swin V2-CR has
    "huge": {"embed_dim": 352, "depths": (2, 2, 18, 2), "num_heads": (8, 16, 32, 64),
             "extra_norm_period": 6},
    "giant": {"embed_dim": 512, "depths": (2, 2, 42, 2), "num_heads": (16, 32, 64, 128),
              "extra_norm_period": 6},
}  # fmt: skip
CR_ENDINGS: dict[str, tuple[str, ...]] = {  # size -> how the names end; ns: norms after stages
    "tiny": ("224", "ns_224", "384"),
    "small": ("224", "ns_224", "ns_256", "384"),
    "base": ("224", "ns_224", "384"),
    "large": ("224", "384"),
    "huge": ("224", "384"),
    "giant": ("224", "384"),
}
CR_WINDOWS: dict[int, Fields] = {  # img_size -> its window: an eighth of the first map
    224: {},
    256: {"img_size": 256, "window_size": 8},
    384: {"img_size": 384, "window_size": 12},
}

PRETRAINED_12: Fields = {
    "pretrained_window_sizes": (12, 12, 12, 6)
}  # 192 pixels leave 6 at the end


def _swin() -> Variants:
    rows = {
        f"swin_{size}_patch4_window{window}_{img_size}": (
            "swin",
            SIZES[size] | {"window_size": window, "img_size": img_size},
        )
        for size, images in IMAGES.items()
        for window, img_size in images
    }
    # C24: 24 channels a head.
    c24 = SIZES["tiny"] | {"num_heads": (4, 8, 16, 32), "window_size": 8, "img_size": 256}
    rows["swin_tiny_c24_patch4_window8_256"] = ("swin", c24)
    for size, fields in S3.items():
        rows[f"swin_s3_{size}_224"] = ("swin", SIZES["tiny"] | fields | {"img_size": 224})
    return rows


def _swinv2() -> Variants:
    rows = {}
    for size, windows in V2_WINDOWS.items():
        for window in windows:
            fields = SIZES[size] | {"window_size": window, "img_size": 256}
            rows[f"swinv2_{size}_window{window}_256"] = ("swinv2", fields)
    for size in ("base", "large"):
        fields = SIZES[size] | {"window_size": 12, "img_size": 192}
        rows[f"swinv2_{size}_window12_192"] = ("swinv2", fields)
        for img_size, window in V2_LARGER_WINDOWS.items():
            fields = SIZES[size] | PRETRAINED_12 | {"window_size": window, "img_size": img_size}
            rows[f"swinv2_{size}_window12to{window}_192to{img_size}"] = ("swinv2", fields)
    return rows


def _swin_mlp() -> Variants:
    rows = {
        f"swin_mlp_tiny_c{96 // heads}_patch4_window8_256": (
            "swin_mlp",
            SIZES["tiny"]
            | {"num_heads": tuple(heads * 2**stage for stage in range(4))}
            | {"window_size": 8, "img_size": 256},
        )
        for heads in (4, 8, 16)
    }
    rows["swin_mlp_base_patch4_window7_224"] = ("swin_mlp", SIZES["base"])
    return rows


def _swin_moe() -> Variants:
    return {
        f"swin_moe_{size}_patch4_window12_192_{experts}expert": (
            "swin_moe",
            SIZES[size] | {"num_experts": experts},
        )
        for size, counts in MOE_EXPERTS.items()
        for experts in counts
    }


def _swinv2_cr() -> Variants:
    rows: Variants = {}
    for size, endings in CR_ENDINGS.items():
        for ending in endings:
            img_size = int(ending.removeprefix("ns_"))
            fields = CR_SIZES.get(size, SIZES.get(size, {})) | CR_WINDOWS[img_size]
            if ending.startswith("ns_"):
                fields = fields | {"extra_norm_stage": True}
            if (size, ending) == ("huge", "384"):
                fields = fields | {"num_heads": (11, 22, 44, 88)}
            rows[f"swinv2_cr_{size}_{ending}"] = ("swinv2_cr", fields)
    return rows


VARIANTS: Variants = _swin() | _swinv2() | _swinv2_cr() | _swin_mlp() | _swin_moe()


def _aliases() -> dict[str, str]:
    """Returns Microsoft's names that are not ours: those of V2, and of MoE with their GPUs."""
    aliases = {
        name.replace("_window", "_patch4_window", 1): name
        for name in VARIANTS
        if name.startswith("swinv2_") and "_window" in name
    }
    for name in VARIANTS:
        if name.startswith("swin_moe_"):
            aliases[f"{name}_{64 if name.endswith('_64expert') else 32}gpu"] = name
    return aliases


ALIASES: dict[str, str] = _aliases()
