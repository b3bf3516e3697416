"""The public names: those that `dir` shows are those there are, each from the room it lives in."""

import doctest
import inspect
import subprocess
import sys

import pytest

import vitswin_jax

# The examples of functions show their results; test_fitting.py runs that of `fit`.
OTHERS = {"__version__", "fit"}
EXAMPLES = {name: getattr(vitswin_jax, name) for name in {*vitswin_jax.__all__} - OTHERS}
EXAMPLES["trajectory"] = vitswin_jax.train.trajectory


def test_dir_shows_the_public_names_and_each_can_be_had():
    names = dir(vitswin_jax)
    assert set(names) == {*vitswin_jax.__all__, "train"}
    assert all(getattr(vitswin_jax, name) is not None for name in names)
    assert vitswin_jax.train.trajectory is not None


def test_dir_imports_no_jax():
    script = "import sys, vitswin_jax; dir(vitswin_jax); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_example_of_a_public_name_is_true(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = EXAMPLES[name]
    names = {**vars(sys.modules[thing.__module__]), "vitswin_jax": vitswin_jax}
    tests = doctest.DocTestFinder(recurse=False).find(thing, name, globs=names)
    shown = []
    results = [doctest.DocTestRunner(verbose=False).run(each, out=shown.append) for each in tests]
    assert sum(each.attempted for each in results) > 0
    assert not shown, "".join(shown)


@pytest.mark.parametrize("name", sorted({*EXAMPLES, "fit"}))
def test_pydoc_explains_what_a_function_takes_returns_and_raises(name):
    thing = vitswin_jax.fit if name == "fit" else EXAMPLES[name]
    text = inspect.getdoc(thing)
    if inspect.isclass(thing):
        attributes = {each.name for each in getattr(thing, "__dataclass_fields__", {}).values()}
        assert all(f"    {each}: " in text for each in attributes), text
        return
    parameters = inspect.signature(thing).parameters
    assert not [each for each in parameters if f"    {each}: " not in text.replace("**", "")]
    assert "Returns:\n" in text
    assert "Raises:\n    UserError: " in text or name == "model_names"
