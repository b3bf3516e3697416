"""Which commands set how JAX takes a GPU's memory, and when."""

import os
import subprocess
import sys

import pytest
from kinds import mostly_long

from vitswin_jax.core.gpus import JAX_DECIDES, take_memory_as_needed

RUN = """
import os, sys
first = []
def note(event, arguments):
    if event == "import" and arguments[0] == "jax" and not first:
        first.append(os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE"))
sys.addaudithook(note)
sys.argv = ["vitswin", "models", "vit_tiny_patch16_224"]
from vitswin_jax.cli import main
main()
print(first)
"""


CHOSEN = [{}, {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}]


@pytest.mark.long
@pytest.mark.parametrize("chosen", mostly_long(CHOSEN, [{}]))
def test_a_command_takes_memory_as_needed_unless_the_user_decides(chosen):
    """Of the environment at the moment when jax is first imported."""
    others = {name: text for name, text in os.environ.items() if name not in JAX_DECIDES}
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=others | chosen, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == str([chosen.get(JAX_DECIDES[0], "false")])


@pytest.mark.parametrize("name", JAX_DECIDES)
def test_whoever_sets_one_of_jaxs_variables_decides_alone(name, monkeypatch):
    for other in JAX_DECIDES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "0.3")
    take_memory_as_needed()
    assert {other: os.environ.get(other) for other in JAX_DECIDES if other in os.environ} == {
        name: "0.3"
    }


@pytest.mark.long
def test_training_takes_a_gpu_as_jax_does():
    script = RUN.replace('"models", "vit_tiny_patch16_224"', '"train", "no_such_recipe"')
    others = {name: text for name, text in os.environ.items() if name not in JAX_DECIDES}
    done = subprocess.run(
        [sys.executable, "-c", script], env=others, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == str([None]), done.stderr
