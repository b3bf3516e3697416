"""The ViT paper's ablation of position embeddings (arXiv:2010.11929, table 8).

vitswin train positions:1d,input --workdir=runs/positions_1d

The kind is none, 1d, 2d, sincos2d or relative, and it stands at the input, in every block anew, or
is shared by all blocks (relative ones stand in blocks). Everything else is vit_s16.py's at 90
epochs, with ViT-B/16: the paper pre-trained on JFT, which nobody can. Its 5-shot accuracies on
ImageNet, by place (input, every, shared), are the order to expect: none 61.4; 1d 64.2, 64.0, 64.3;
2d 64.0, 64.0, 64.0; relative 64.0 %.
"""

from ml_collections import ConfigDict

from configs import base, vit_s16

KINDS = {
    "1d": "learned",
    "none": "none",
    "2d": "learned2d",
    "sincos2d": "sincos2d",
    "relative": "relative",
}
PLACES = ("input", "every", "shared")


def get_config(arg: str = "1d,input") -> ConfigDict:
    """Returns the recipe for "KIND,PLACE"; raises UserError for others than there are."""
    places = PLACES[1:] if arg.startswith("relative") else PLACES  # these are not at the input
    kind, place = base.choices(__file__, arg, KINDS, places)
    fields = {"pos_embed": KINDS[kind], "pos_embed_at": place}
    return vit_s16.make("vit_base_patch16_224", 90.0, **fields)
