"""Fine-tuning on the digits: from weights of another size and other classes, beside from scratch.

vitswin train finetune_digits:digits --workdir=runs/digits
vitswin train finetune_digits:scratch --workdir=runs/scratch
vitswin train finetune_digits:finetune --workdir=runs/finetune
vitswin train finetune_digits:lora --workdir=runs/lora

The first tells the ten digits apart at 16 pixels; the others tell even from odd at 24 pixels, in
equally many steps, and the last two start from the first's weights and show the second's results
beside their own in their reports. Seen: 93.1 % of ten digits; 82.7 % from scratch, 97.6 % from the
first's weights, 96.9 % with adapters alone and the head.
"""

from ml_collections import ConfigDict

from configs import base, digits

FROM_DIGITS = {"init_from": "runs/digits", "compare_to": "runs/scratch"}
RUNS = {  # the changes of each run
    "finetune": FROM_DIGITS,
    "digits": {},
    "scratch": {},
    "lora": {**FROM_DIGITS, "lora": {"rank": 8}, "optim": {"peak_lr": 3e-3}},
}


def get_config(run: str = "finetune") -> ConfigDict:
    """Returns the recipe of one of the four runs; raises UserError for another name."""
    (run,) = base.choices(__file__, run, RUNS)
    pretrains = run == "digits"
    return base.recipe(
        {
            "data": {"dataset": "digits" if pretrains else "digits_parity", "batch_size": 32},
            "preprocess": {"crop_mode": "squash", "crop_fraction": 1.0},
            "augment": digits.IMAGES["augment"],
            "optim": {
                "peak_lr": 1e-3,
                "epochs": 12.0 if pretrains else 2.0,
                "warmup_epochs": 1.0 if pretrains else 0.5,
                "max_grad_norm": 1.0,
            },
            "run": {"log_steps": 20, "eval_epochs": 3.0 if pretrains else 0.5},
        },
        model={
            "name": "vit",
            "img_size": 16 if pretrains else 24,
            "patch_size": 4,
            "embed_dim": 96,
            "depth": 4,
            "num_heads": 3,
        },
        **RUNS[run],
    )
