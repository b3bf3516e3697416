"""Fine-tuning on the digits: from weights of another size and other classes, beside from scratch.

python train.py --config=configs/finetune_digits.py:digits --workdir=runs/digits
python train.py --config=configs/finetune_digits.py:scratch --workdir=runs/scratch
python train.py --config=configs/finetune_digits.py:finetune --workdir=runs/finetune
python train.py --config=configs/finetune_digits.py:lora --workdir=runs/lora

The first tells the ten digits apart at 16 pixels; the others tell even from odd at 24 pixels, in
equally many steps, and the last two start from the first's weights and show the second's results
beside their own in their reports. Seen: 93.1 % of ten digits; 82.7 % from scratch, 97.6 % from the
first's weights, 96.9 % with adapters alone and the head.
"""

from ml_collections import ConfigDict

from configs import base
from vitswin_jax.core.types import UserError

PRETRAINED, SCRATCH = "runs/digits", "runs/scratch"
RUNS = ("digits", "scratch", "finetune", "lora")


def get_config(run: str = "finetune") -> ConfigDict:
    """Returns the recipe of one of the four runs; raises UserError for another name."""
    if run not in RUNS:
        raise UserError(
            f"configs/finetune_digits.py:{run}: the argument is one of {', '.join(RUNS)}."
        )
    config = base.get_config()
    pretrains = run == "digits"
    with config.unlocked():
        config.model = base.model_section(
            "vit",
            img_size=16 if pretrains else 24,
            patch_size=4,
            embed_dim=96,
            depth=4,
            num_heads=3,
        )
    config.data.update(dataset="digits" if pretrains else "digits_parity", batch_size=32)
    config.preprocess.update(crop_mode="squash", crop_fraction=1.0)
    config.augment.update(crop="shift", shift=0.1, rotate=12.0, zoom=0.1, flip=False)
    config.optim.update(peak_lr=1e-3, epochs=12.0, warmup_epochs=1.0, max_grad_norm=1.0)
    if not pretrains:
        config.optim.update(epochs=2.0, warmup_epochs=0.5)
    if run in ("finetune", "lora"):
        config.init_from, config.compare_to = PRETRAINED, SCRATCH
    if run == "lora":
        config.lora.rank = 8
        config.optim.peak_lr = 3e-3
    config.run.update(log_steps=20, eval_epochs=3.0 if pretrains else 0.5)
    return config.lock()
