"""The command itself: help, exit statuses, one line for a mistake."""

import argparse
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from vitswin_jax import cli
from vitswin_jax.core.recipes import recipe_names
from vitswin_jax.core.version import __version__


def python(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_module_runs_and_is_quiet():
    done = python("-m", "vitswin_jax.cli", "models", "swin_tiny_patch4_window7*")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].startswith("swin_tiny_patch4_window7_224")
    assert done.stderr == ""


def test_help_lists_the_commands_and_imports_no_jax():
    script = (
        "import sys; from vitswin_jax.cli import main\n"
        "try: main(['--help'])\n"
        "finally: assert 'jax' not in sys.modules"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    for command in ("models", "predict", "evaluate"):
        assert command in done.stdout


@pytest.mark.parametrize("arguments", [[], ["train"]])
def test_a_command_without_arguments_shows_examples_and_recipes_and_imports_no_jax(arguments):
    script = (
        f"import sys; from vitswin_jax.cli import main\nstatus = main({arguments})\n"
        "assert 'jax' not in sys.modules; sys.exit(status)"
    )
    done = python("-c", script)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: vitswin")
    assert "\n  vitswin train ./flowers" in done.stderr
    for name in recipe_names():
        assert f"\n  {name} " in done.stderr


def test_a_misspelt_command_is_named_with_the_nearest(capsys):
    with pytest.raises(SystemExit):
        cli.main(["modles"])
    assert "no command is called 'modles'; did you mean models?" in capsys.readouterr().err


def test_a_misspelt_flag_is_named_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", "weights", "image.png", "--topk=3"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "usage: vitswin predict" in err
    assert err.endswith("unrecognized arguments: --topk=3; did you mean --top-k?\n")


def helps(parser):
    """(where, help text) of all arguments, groups and subcommands."""
    for group in parser._action_groups:
        if group.description:
            yield f"{parser.prog}, {group.title}", group.description
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from ((each.dest, each.help) for each in action._choices_actions)
            for command in action.choices.values():
                yield from helps(command)
        else:
            yield f"{parser.prog} {'/'.join(action.option_strings) or action.dest}", action.help


def test_help_speaks_whole_sentences():
    for where, text in helps(cli.whole_parser()):
        assert text, where
        for sentence in re.split(r"(?<=\.) (?=[A-Z`\-])", text):
            whole = re.match(r"[A-Z`-]", sentence) and sentence.endswith(".")
            assert whole and len(sentence.split()) > 2, f"{where}: {sentence}"


@pytest.mark.parametrize("command", list(cli._COMMANDS))
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"vitswin {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [[], ["modles"], ["predict"], ["models", "--colour"], ["predict", "w", "i", "--top-k", "0"]],
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: vitswin" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"vitswin {__version__}\n"


def test_a_mistake_is_one_line(vitswin, tmp_path):
    path = tmp_path / "none"
    status, out, err = vitswin("predict", path, "image.png")
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {path}: no such file or folder")
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [("models", "vit_tiny_patch16_224"), ("predict", "--help")])
def test_a_reader_that_stops_is_no_traceback(words):
    """As `vitswin models | head -0`."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "vitswin_jax.cli", *words],
            stdout=closed, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 1


def test_the_script_is_the_command():
    scripts = [e for e in entry_points(group="console_scripts") if e.name == "vitswin"]
    if not scripts:
        pytest.skip("the package is not installed; test_wheel.py installs it")
    assert scripts[0].load() is cli.main


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (["--profile", "10:20", "digits"], "10:20"),
        (["--profile=3:4", "digits"], "3:4"),
        (["--profile", "digits"], "true"),
        (["digits", "--profile"], "true"),
    ],
)
def test_profile_may_have_a_value_or_none(words, want):
    args = cli._parse(["train", *words])
    assert (args.profile, args.recipe) == (want, "digits")


def test_a_key_may_have_spaces_in_its_value():
    """As tuples have, which shells give as one argument."""
    keys = ["--model.depths=(2, 1)", "--config.model.num_heads=(2, 2)", "--seed=1"]
    args = cli._parse(["train", "swin", *keys, "--model.depths", "(1, 1)"])
    assert args.overrides == [*keys[:2], "--model.depths=(1, 1)"] and args.seed == "1"
