"""A recipe and what the command line changes of it, as a config; what is wrong is one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from vitswin_jax.core.types import UserError

FLAG_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError)
"""What flags and recipes raise for what is wrong with them."""


def what_was_wrong(error: Exception) -> str:
    """Returns one of `FLAG_ERRORS` as a line.

    ml_collections puts whole tracebacks, and quoted messages, into a message: its last line is
    what was wrong.
    """
    line = str(error).replace("\\n", "\n").strip().splitlines()[-1].strip('" ')
    line = line.removesuffix("'") if line.count("'") % 2 else line
    return re.sub(r"^[\w.]*Error: ", "", line)


def read_recipe(recipe: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Returns the config of "configs/X.py[:argument]" with "--config.section.key=value" overrides.

    A recipe imports its neighbours as `configs`, which is looked for beside it and in the folder
    that one is in. Raises UserError for a file, an argument, a key or a value that cannot be.
    """
    found = str(Path(recipe.partition(":")[0]).expanduser().resolve().parents[1])
    argv = ["plan", f"--config={recipe}", *overrides]
    values = flags.FlagValues()
    flag = config_flags.DEFINE_config_file(
        "config", None, "A recipe.", flag_values=values, sys_argv=argv
    )
    added = [folder for folder in (found, str(Path.cwd())) if folder not in sys.path]
    sys.path[:0] = added
    try:
        rest = values(argv)[1:]
        config = flag.value
        config.is_locked  # noqa: B018  a file that cannot be loaded says so when it is used
    except FLAG_ERRORS as error:
        raise UserError(what_was_wrong(error)) from error
    finally:
        sys.path[:] = [folder for folder in sys.path if folder not in added]
    if rest:
        raise UserError(f"unexpected {' '.join(rest)}; a key is --config.section.key=value.")
    return config
