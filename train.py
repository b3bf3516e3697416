"""Trains a model, as `vitswin train` does.

python train.py --config=configs/X.py[:argument] --workdir=DIR [--config.section.key=value ...]

Prints one line at the end, the result; what happens on the way goes to standard error. The same
command resumes an interrupted run.
"""

import sys

from vitswin_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(command="train"))
