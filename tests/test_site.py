"""The documentation site: its navigation has every page, and it builds without a warning."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import vitswin_jax
from vitswin_jax.core.recipes import recipe_names

ROOT = Path(__file__).parents[1]
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
NEEDED = ("jieba", "latex2mathml", "material", "mkdocs", "mkdocstrings", "nbconvert")
OTHERS = ("timm", "big_vision", "swin", "keras")


def pages_of(entry):
    """The pages below an entry of the navigation."""
    if isinstance(entry, str):
        return [entry]
    below = entry.values() if isinstance(entry, dict) else entry
    return [page for each in below for page in pages_of(each)]


def test_the_navigation_has_every_page_once():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/README.md")]
    books = [path.with_suffix(".md") for path in ROOT.glob("notebooks/*.ipynb")]
    named = pages_of(SETTINGS["nav"])
    there = {path.relative_to(ROOT).as_posix() for path in [*pages, *books]}
    made = {name for name in named if name.startswith("reference/")}
    assert sorted(named) == sorted(there | made)


@pytest.mark.parametrize("other", OTHERS)
def test_a_page_for_those_who_come_from_another_library_has_each_task(other):
    text = (ROOT / "docs" / f"from_{other}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.M)
    tasks = ("Create", "Load", "Fine-tune", "Export", "Save back")
    assert len(headings) == len(tasks)
    assert all(map(str.startswith, headings, tasks))


def build(root, site):
    """Runs the command of `make docs` in a tree, into the folder `site`."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs the extra docs: {', '.join(missing)} cannot be imported")
    (flags,) = re.findall(r"\$\(BIN\)/python (-m mkdocs build.*)", (ROOT / "Makefile").read_text())
    own = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        [sys.executable, *flags.split(), "--site-dir", site],
        cwd=root, env=os.environ | own, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


@pytest.mark.long
def test_a_link_that_leads_nowhere_is_no_site(tmp_path):
    kept_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "site", "tests")
    tree = shutil.copytree(ROOT, tmp_path / "tree", ignore=kept_out)
    shutil.copytree(ROOT / "docs" / "site", tree / "docs" / "site")
    with (tree / "docs" / "hub.md").open("a", encoding="utf-8") as page:
        page.write("\n[a](none.md) [b](data.md#nowhere) [c](../vitswin_jax/none.py)\n")
    done = build(tree, tmp_path / "site")
    assert done.returncode == 1
    for target in ("none.md", "#nowhere", "none.py"):
        assert re.search(f"WARNING .*hub.md.*{target}", done.stderr), done.stderr


@pytest.mark.long
def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path):
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    built = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.html")}
    for page in pages_of(SETTINGS["nav"]):
        name = re.sub(
            r"(^|/)README$", r"\1index", page.removesuffix(".md")
        )  # the first of a folder
        assert f"{name}.html" in built
    loaded = (
        r"""<(?:script|img|iframe|source)[^>]*src=["']?(?:https?:)?//|<link[^>]*stylesheet[^>]*//"""
    )
    texts = {name: path.read_text(encoding="utf-8") for name, path in built.items()}
    assert [name for name, text in texts.items() if re.search(loaded, text)] == []
    reference = texts["reference/python.html"]
    assert all(f'.{name}"' in reference for name in vitswin_jax.__all__ if name[0] != "_")
    assert "vitswin predict" in texts["reference/commands.html"]
    assert all(f"reference/recipes/{name}.html" in built for name in recipe_names())
    assert "<math" in texts["docs/concepts.html"] and "<math" in texts["docs/concepts.zh.html"]
    assert "load_digits" in texts["notebooks/explain.html"]
