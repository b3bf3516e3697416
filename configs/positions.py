"""The ViT paper's ablation of position embeddings (arXiv:2010.11929, table 8).

python train.py --config=configs/positions.py:1d,input --workdir=runs/positions_1d

The kind is none, 1d, 2d, sincos2d or relative, and it stands at the input, in every block anew, or
is shared by all blocks (relative ones stand in blocks). Everything else is vit_s16.py's at 90
epochs, with ViT-B/16: the paper pre-trained on JFT, which nobody can. Its 5-shot accuracies on
ImageNet, by place (input, every, shared), are the order to expect: none 61.4; 1d 64.2, 64.0, 64.3;
2d 64.0, 64.0, 64.0; relative 64.0 %.
"""

from ml_collections import ConfigDict

from configs import base, vit_s16
from vitswin_jax.core.types import UserError

KINDS = {
    "none": "none",
    "1d": "learned",
    "2d": "learned2d",
    "sincos2d": "sincos2d",
    "relative": "relative",
}
PLACES = ("input", "every", "shared")


def get_config(arg: str = "1d,input") -> ConfigDict:
    """Returns the recipe for "KIND,PLACE"; raises UserError for others than there are."""
    kind, _, place = arg.partition(",")
    place = place or ("every" if kind == "relative" else "input")
    if kind not in KINDS or place not in PLACES or (kind == "relative" and place == "input"):
        raise UserError(
            f"configs/positions.py:{arg}: is KIND,PLACE of {', '.join(KINDS)} and "
            f"{', '.join(PLACES)}; relative positions are not at the input."
        )
    config = vit_s16.get_config("90")
    with config.unlocked():
        config.model = base.model_section(
            "vit_base_patch16_224",
            class_token=False,
            global_pool="avg",
            pos_embed=KINDS[kind],
            pos_embed_at=place,
            dtype="bfloat16",
        )
    config.model.pre_logits = config.model.embed_dim
    return config.lock()
