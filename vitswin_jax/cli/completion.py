"""`vitswin completion`: a script by which a shell completes commands, flags and files."""

from __future__ import annotations

import argparse

from vitswin_jax.core.terminal import say

SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument("shell", choices=SHELLS, help="The script is written for this shell.")
    parser.epilog = (
        "examples:\n"
        '  eval "$(vitswin completion bash)"\n'
        "  vitswin completion zsh > ~/.zfunc/_vitswin"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the script of a shell."""
    import shtab

    from vitswin_jax.cli import whole_parser

    say(*shtab.complete(whole_parser(), shell=args.shell).splitlines())
    return 0
