"""The notebooks of the first day: their cells run in order, and Colab opens them.

A cell is run as Jupyter runs it, in one namespace. What a test shortens is `EPOCHS`, which the cell
of settings assigns.
"""

import json
import subprocess
import sys
import types
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONG = [pytest.param(path, marks=pytest.mark.long, id=path.stem) for path in NOTEBOOKS]


def cells(path, kind="code"):
    book = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def test_there_are_three():
    names = [path.stem for path in NOTEBOOKS]
    assert names == ["explain", "fine_tune", "train_on_a_folder"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_as_colab_and_git_want_it(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    assert book["metadata"]["colab"]["name"] == path.name
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids) and book["cells"][0]["cell_type"] == "markdown"
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            compile("".join(cell["source"]), path.name, "exec")
    assert path.name in (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_in_colab_and_nowhere_else(path, monkeypatch):
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command))
    exec(cells(path)[0], {})
    assert ran == []
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    exec(cells(path)[0], {})
    assert ran == [[sys.executable, "-m", "pip", "install", "--quiet", "vitswin_jax"]]


@pytest.mark.parametrize("path", LONG)
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_a_notebook_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, source in enumerate(cells(path), 1):
        exec(compile(source, f"{path.name}[{number}]", "exec"), names)
        if "EPOCHS =" in source:
            names["EPOCHS"] = 1
    plt.close("all")
    assert "%" in capsys.readouterr().out
