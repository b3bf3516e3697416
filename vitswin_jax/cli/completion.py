"""`vitswin completion`: a script by which a shell completes commands, flags, names and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from vitswin_jax.core.recipes import recipe_names
from vitswin_jax.core.terminal import say
from vitswin_jax.core.types import UserError

SHELLS = ("bash", "zsh", "tcsh")
FILES = {"RECIPE", "DATA", "DATASET", "WEIGHTS", "IMAGE", "SRC", "DST", "PNG", "FILE", "FILE.png",
         "FILE.npz", "DIR", "FOLDER"}  # fmt: skip
"""What arguments that are paths, or may be, are called in the help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument("shell", choices=SHELLS, help="Print the script for this shell.")
    parser.epilog = (
        "examples:\n"
        '  eval "$(vitswin completion bash)"\n'
        "  vitswin completion zsh > ~/.zfunc/_vitswin"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the script of a shell."""
    try:
        import shtab
    except ImportError as error:
        raise UserError("needs the package shtab; `pip install shtab`.") from error

    from vitswin_jax.cli import whole_parser
    from vitswin_jax.models.variants import VARIANTS

    parser = whole_parser()
    words = {"RECIPE": list(recipe_names()), "NAME": list(VARIANTS)}
    bash = "\n".join(
        f"{_function(kind)}() {{ compgen -W '{' '.join(names)}' -- \"$1\"; {files} }}"
        for kind, names in words.items()
        for files in ['compgen -f -- "$1";' if kind in FILES else ""]
    )
    for action in _actions(parser):
        kind = str(action.metavar)
        if kind == "NAME" and "--model" not in action.option_strings:
            continue
        if kind in words:
            complete = {"bash": _function(kind), "zsh": f"({' '.join(words[kind])})"}
            action.complete = complete  # type: ignore[attr-defined]
        elif kind in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    functions = bash if args.shell == "bash" else ""
    script = shtab.complete(parser, shell=args.shell, preamble=functions)
    say(*script.splitlines())
    return 0


def _function(kind: str) -> str:
    """Returns the name of the function that completes a kind of argument."""
    return f"_vitswin_{kind.lower()}"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Gives the arguments of a parser and of its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action
