"""AugReg: ViTs with the augmentation that suits their size and their data (arXiv:2106.10270).

python train.py --config=configs/augreg.py:i1k,S/16 --workdir=runs/augreg_s16
python train.py --config=configs/augreg.py:i21k,B/16 --workdir=runs/augreg_b16 \
    --config.data.dataset=DATASET

Batch 4096, 300 epochs, 224 pixels, as big_vision's vit_i1k.py and vit_i21k.py. Expected on
ImageNet-1k's validation set, from scratch: B/16 about 79 % (big_vision issue 7); after fine-tuning
at 384 (transfer.py) those from ImageNet-1k S/16 81.1, B/32 78.8, B/16 81.1 %, and those from
ImageNet-21k Ti/16 78.2, S/32 79.6, S/16 83.7, B/32 83.6, B/16 85.5, L/16 85.6 %.
"""

from ml_collections import ConfigDict

from configs import base, parts
from vitswin_jax.core.types import UserError
from vitswin_jax.models.registry import resolve_name

LEVELS = {  # RandAugment (layers, magnitude), and mixup's alpha
    "none": (None, 0.0),
    "light1": ("randaug(2,0)", 0.0),
    "light2": ("randaug(2,10)", 0.2),
    "medium1": ("randaug(2,15)", 0.2),
    "medium2": ("randaug(2,15)", 0.5),
    "strong1": ("randaug(2,20)", 0.5),
    "strong2": ("randaug(2,20)", 0.8),
}
MODELS = {  # the level for ImageNet-1k, for ImageNet-21k
    "Ti/16": ("light1", "none"),
    "S/32": ("medium1", "none"),
    "S/16": ("medium2", "light1"),
    "B/32": ("medium2", "light2"),
    "B/16": ("medium2", "light2"),
    "L/16": ("medium2", "medium2"),
}


def get_config(arg: str = "i1k,S/16") -> ConfigDict:
    """Returns the recipe for "DATASET,MODEL"; raises UserError for others than there are."""
    data, _, model = arg.partition(",")
    if data not in ("i1k", "i21k") or model not in MODELS:
        raise UserError(
            f"configs/augreg.py:{arg}: is i1k or i21k, and one of {', '.join(MODELS)}: 'i1k,S/16'."
        )
    from_1k = data == "i1k"
    name, _ = resolve_name(model)
    config = base.get_config()
    head = {} if from_1k else {"class_token": False, "global_pool": "avg"}
    with config.unlocked():
        config.model = base.model_section(name, dtype="bfloat16", **head)
    if from_1k:
        config.model.pre_logits = config.model.embed_dim
    parts.use_imagenet_1k(config, batch_size=4096, train_split="train[:99%]")
    if not from_1k:
        config.data.update(dataset=parts.IMAGENET_21K, train_split="train", test_split="test")
    parts.augment_as_inception(config)
    rand_augment, mixup_alpha = LEVELS[MODELS[model][0 if from_1k else 1]]
    config.augment.update(rand_augment=rand_augment, mixup_alpha=mixup_alpha)
    config.loss.update(name="sigmoid", head_bias_init=-6.9 if from_1k else -10.0)
    parts.train_as_big_vision(config, epochs=300.0)
    config.run.update(eval_epochs=10.0, checkpoint_epochs=1.0)
    return config.lock()
