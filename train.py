"""Trains a model: python train.py --config=configs/X.py[:arg] --workdir=DIR [--config.key=value].

Prints one line at the end, the result; what happens on the way goes to standard error. The same
command again goes on with a run that was stopped.
"""

from vitswin_jax.core.signals import end_at_signals

if __name__ == "__main__":
    end_at_signals(  # first of all: the imports take seconds
        "; the same command resumes from the last checkpoint, or begins where there is none."
    )

import logging
import os
import shlex
import sys
from typing import NoReturn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what fails in XLA is raised, or ends as a line

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from vitswin_jax.core.cache import keep_compiled_programs
from vitswin_jax.core.heap import keep_freed_memory
from vitswin_jax.core.terminal import LogHandler, say, say_error
from vitswin_jax.core.types import UserError
from vitswin_jax.train.hosts.join import JOIN_TIMEOUT, LOST_AFTER, joined
from vitswin_jax.train.keep.timing import parse_window
from vitswin_jax.train.run.recipe import FLAG_ERRORS, what_was_wrong
from vitswin_jax.trainer import train_and_evaluate

told = logging.getLogger("vitswin_jax")  # what a run starts from, and trains

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.", required=True)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of host 0 (docs/hosts.md).")
_NUM_HOSTS = flags.DEFINE_integer("num_hosts", None, "How many hosts there are.", lower_bound=1)
_HOST_INDEX = flags.DEFINE_integer("host_index", None, "Which this is.", lower_bound=0)
_JOIN_TIMEOUT = flags.DEFINE_integer("join_timeout", JOIN_TIMEOUT, "In seconds.", lower_bound=1)
_LOST_AFTER = flags.DEFINE_integer("lost_after", LOST_AFTER, "Seconds of silence.", lower_bound=1)
_ACCEPT = flags.DEFINE_bool(
    "accept_changed_data", False, "Resume on data that changed since the last checkpoint."
)
_PROFILE: flags.FlagHolder[str | None] = flags.DEFINE_flag(
    flags.Flag(
        flags.ArgumentParser(),
        None,
        "profile",
        None,
        "Trace the steps START:STOP from where the run begins, for XProf; by itself, 10:20.",
        boolean=True,  # may stand by itself
    )
)
flags.mark_flag_as_required("config")


def end_with(error: object, status: int = 1) -> NoReturn:
    """Ends with the line of an error."""
    say_error(error)
    sys.exit(status)


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them, a config's keys included, is one line."""
    try:
        rest = flags.FLAGS(argv)
        _CONFIG.value.is_locked  # noqa: B018  a file that cannot be loaded says so when it is used
    except FLAG_ERRORS as error:
        end_with(what_was_wrong(error))
    return rest


def main(argv: list[str]) -> None:
    """Runs the training that the flags name."""
    if len(argv) > 1:
        end_with(f"unexpected {' '.join(argv[1:])}; every flag begins with --.")
    keep_compiled_programs()
    keep_freed_memory()
    try:
        command = f"python {shlex.join(sys.argv)}"
        profile = None if _PROFILE.value is None else parse_window(_PROFILE.value)
        with joined(
            coordinator=_COORDINATOR.value,
            num_hosts=_NUM_HOSTS.value,
            host_index=_HOST_INDEX.value,
            join_timeout=_JOIN_TIMEOUT.value,
            lost_after=_LOST_AFTER.value,
        ) as host:
            told.setLevel(logging.WARNING if host else logging.INFO)
            result = train_and_evaluate(
                _CONFIG.value,
                _WORKDIR.value,
                command=command,
                profile=profile,
                accept_changed_data=_ACCEPT.value,
            )
            if host == 0:
                say(result)
    except UserError as error:
        end_with(error, getattr(error, "exit_code", 1))


if __name__ == "__main__":
    absl_logging.set_verbosity(absl_logging.WARNING)
    told.addHandler(LogHandler())
    told.propagate = False
    app.run(main, flags_parser=parse)
