"""The public names: those that `dir` shows are those there are, each from the room it lives in."""

import subprocess
import sys

import vitswin_jax


def test_dir_shows_the_public_names_and_each_can_be_had():
    names = dir(vitswin_jax)
    assert set(names) == {*vitswin_jax.__all__, "train"}
    assert all(getattr(vitswin_jax, name) is not None for name in names)
    assert vitswin_jax.train.trajectory is not None


def test_dir_imports_no_jax():
    script = "import sys, vitswin_jax; dir(vitswin_jax); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
