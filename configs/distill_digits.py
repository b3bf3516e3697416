"""A student taught a teacher's features on the handwritten digits, without labels, in a minute.

vitswin train digits:vit --workdir=runs/vit
vitswin train distill_digits:swin --workdir=runs/student --distill.teacher=runs/vit

The argument is the student's family, vit or swin, in the sizes of `digits`. Any other weights may
be the teacher. Nearest neighbours and a linear probe, in metrics.jsonl and in the report, show how
well the student's features tell the digits apart.
"""

from ml_collections import ConfigDict

from configs import base, digits, distill


def get_config(family: str = "vit") -> ConfigDict:
    """Returns the recipe for one family; raises UserError for an unknown one."""
    (family,) = base.choices(__file__, family, digits.MODELS)
    return base.recipe(
        digits.IMAGES,
        model={"name": family, **digits.MODELS[family]},
        data={"batch_size": 32},
        distill=distill.TAUGHT,
        optim={"peak_lr": 1e-3, "epochs": 20.0, "warmup_epochs": 2.0, "max_grad_norm": 1.0},
        run={"log_steps": 50, "eval_epochs": 4.0, "checkpoint_epochs": 4.0},
    )
