"""Trains a model: python train.py --config=configs/X.py[:arg] --workdir=DIR [--config.key=value].

Prints one line at the end, the result; what happens on the way goes to standard error. The same
command again goes on with a run that was stopped.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from vitswin_jax.train.loop import train_and_evaluate
from vitswin_jax.types import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Runs the training that the flags name."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected: {' '.join(argv[1:])}")
    try:
        print(train_and_evaluate(_CONFIG.value, _WORKDIR.value))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
