"""Lets `python -m vitswin_jax.cli` do what `vitswin` does."""

import sys

from vitswin_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
