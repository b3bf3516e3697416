"""`vitswin completion`: the script completes what a user types."""

import shutil
import subprocess

import pytest

from vitswin_jax import cli


def complete(script, *words):
    """Returns the completions of the last word that bash offers."""
    array = " ".join(f"'{word}'" for word in words)
    ask = (
        f"COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _shtab_vitswin; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True, timeout=60
    )
    return {line.strip() for line in done.stdout.splitlines() if line.strip()}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_flags(vitswin):
    status, script, _ = vitswin("completion", "bash")
    assert status == 0
    assert complete(script, "vitswin", "") >= set(cli._COMMANDS)
    assert complete(script, "vitswin", "pre") == {"predict"}
    assert {"--epochs", "--workdir"} <= complete(script, "vitswin", "train", "--")
    assert complete(script, "vitswin", "convert", "--to", "go") == {"google"}
    assert complete(script, "vitswin", "train", "digi") == {"digits"}
    model = "swinv2_tiny_window8_256"
    assert complete(script, "vitswin", "train", "--model", model[:-3]) == {model}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script(vitswin, shell):
    status, script, _ = vitswin("completion", shell)
    assert status == 0 and "vitswin" in script and "predict" in script
