"""Recipes by name, wherever one is."""

import ast

import pytest

from vitswin_jax.core import recipes
from vitswin_jax.core.types import UserError


def test_each_file_of_configs_is_a_recipe_with_its_summary_or_a_part_of_recipes():
    names = recipes.recipe_names()
    files = {path.stem: path for path in recipes.FOLDER.glob("*.py")}
    assert set(files) - set(names) == {"base", "parts"}
    for name, summary in names.items():
        assert ast.get_docstring(ast.parse(files[name].read_text())).startswith(f"{summary}\n")
        assert len(summary) < 100 and summary.endswith(".")


def test_a_name_and_a_path_of_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = (recipes.FOLDER / "digits.py").resolve()
    assert recipes.find_recipe("digits") == (ours, None)
    assert recipes.find_recipe("digits:vit") == (ours, "vit")
    assert recipes.find_recipe("configs/digits.py:a:b") == (ours, "a:b")


def test_a_file_that_is_there_is_taken_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs" / "digits.py"
    own.write_text("")
    assert recipes.find_recipe("configs/digits.py:vit") == (own.resolve(), "vit")
    assert recipes.find_recipe("digits")[0] == (recipes.FOLDER / "digits.py").resolve()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "digts:vit",
            "digts: no recipe is called so; there are augreg, .*; did you mean 'digits'?",
        ),
        ("base", "base: no recipe is called so"),
        ("configs/parts.py", "configs/parts.py: no such file, and no recipe is called so"),
        ("mine.py", "mine.py: no such file, and no recipe"),
        ("photos/digits", "photos/digits: no recipe is called so"),
        (".", r"\.: is no recipe, which is a name or a .py file; there are augreg"),
    ],
)
def test_what_is_no_recipe_is_named_with_those_there_are(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not recipes.is_recipe(text)
    with pytest.raises(UserError, match=message) as error:
        recipes.find_recipe(text)
    assert len(str(error.value)) < 400
    assert "vit_s16" in str(error.value)
