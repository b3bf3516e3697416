"""Writes vitswin_jax/models/tags.txt and other_names.txt: timm's tags, and names of other models.

PYTHONPATH=. python tests/goldens/write_timm_tags.py

Made with timm 1.0.31, torchvision 0.29.1 and transformers 5.24.0.
"""

import textwrap
from pathlib import Path

import timm
import torchvision.models
import transformers
from timm.models import _registry
from transformers.models.auto import modeling_auto

from vitswin_jax.models.aliases import ALIASES
from vitswin_jax.models.variants import VARIANTS

ROOM = Path(__file__).parents[2] / "vitswin_jax" / "models"
STATISTICS = {
    (0.5, 0.5, 0.5, 0.5, 0.5, 0.5): "half",
    (0.485, 0.456, 0.406, 0.229, 0.224, 0.225): "imagenet",
    (0.48145466, 0.4578275, 0.40821073, 0.26862954, 0.26130258, 0.27577711): "clip",
    (0.0, 0.0, 0.0, 1.0, 1.0, 1.0): "unit",
    (0.43, 0.411, 0.296, 0.213, 0.156, 0.143): "satellite",
}
TAGS = """\
# timm's tags: which weights of a variant there are, their classes, and how they are given images.
#   variant  classes  statistics  crop  mode  interpolation  tags
# A row has the tags of a variant that have these values in common, and a variant's first tag is its
# default. `statistics` are keys of `weights.sources.preprocess.STATISTICS`; crop, mode and
# interpolation are the fields of `Preprocess`. 0 classes: no head. Written by
# tests/goldens/write_timm_tags.py from timm {timm}.
"""
OTHERS = """\
# Names of models that vitswin_jax does not have, by the library that has them: they are refused by
# name, and no suggestion takes their place. Of timm, the models with "vit", "swin" and the like.
# Written by tests/goldens/write_timm_tags.py from timm {timm}, torchvision {torchvision},
# transformers {transformers}, and open_clip's list by hand.
"""
LIKE = (
    "vit", "vision_transformer", "swin", "beit", "deit", "eva", "hiera", "cait", "pit", "tnt",
    "xcit", "volo", "twins", "coat", "pvt", "sam",
)  # fmt: skip
OPEN_CLIP = (
    "ViT-S-16", "ViT-S-32", "ViT-M-16", "ViT-M-32", "ViT-B-16", "ViT-B-32", "ViT-L-14", "ViT-L-16",
    "ViT-H-14", "ViT-H-16", "ViT-g-14", "ViT-bigG-14", "ViT-e-14", "ViT-SO400M-14-SigLIP",
    "ViT-B-16-SigLIP", "ViT-L-16-SigLIP-256", "ViT-SO400M-14-SigLIP-384",
)  # fmt: skip


def tag_rows():
    """Yields the rows of each variant, that of its default tag first."""
    for variant in sorted(VARIANTS):
        groups = {}
        for name in _registry._model_with_tags.get(variant, []):
            cfg = timm.get_pretrained_cfg(name)
            assert cfg.test_crop_pct is None and cfg.test_input_size is None, name
            assert cfg.input_size == (3, *2 * [VARIANTS[variant][1].get("img_size", 224)]) or (
                "swinv2" in variant
            ), name
            whole = cfg.crop_mode == "center" or cfg.crop_pct == 1.0
            mode = cfg.crop_mode if whole else f"{cfg.crop_mode}_crop"
            statistics = STATISTICS[(*cfg.mean, *cfg.std)]
            key = (
                cfg.num_classes, statistics, cfg.crop_pct, mode, cfg.interpolation
            )  # fmt: skip
            groups.setdefault(key, []).append(name.partition(".")[2])
        for key, tags in groups.items():
            yield " ".join(map(str, (variant, *key, *tags)))


def timms_others():
    names = {
        name
        for module, names in _registry._module_to_models.items()
        if any(word in module for word in LIKE)
        for name in names
    }
    return names - _registry._deprecated_models.keys()


def main():
    versions = {module.__name__: module.__version__ for module in (timm, transformers)}
    versions["torchvision"] = torchvision.__version__.partition("+")[0]
    (ROOM / "tags.txt").write_text(TAGS.format(**versions) + "\n".join(tag_rows()) + "\n")
    lists = {
        "timm": timms_others(),
        "torchvision": [
            name for name in torchvision.models.list_models() if "vit" in name or "swin" in name
        ],
        "transformers": {
            *modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
            *modeling_auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
            *modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES,
        },
        "open_clip": OPEN_CLIP,
    }
    families = {family for family, _ in VARIANTS.values()}
    text = OTHERS.format(**versions)
    for library, names in lists.items():
        ours = families | VARIANTS.keys() | ALIASES.keys()
        words = " ".join(sorted(set(names) - ours))
        text += f"[{library}]\n" + textwrap.fill(
            words, 100, break_on_hyphens=False, break_long_words=False
        )
        text += "\n"
    (ROOM / "other_names.txt").write_text(text)


if __name__ == "__main__":
    main()
