"""Every page of the documentation is true: its commands run and print what it shows.

How a page is read stands in documents.py. Pages in two languages have equal fences, so that the
English one's are run for both.
"""

import ast
import concurrent.futures
import multiprocessing
import os
import re
import runpy
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from documents import commands, printed_as, read_page
from given import ROOT, follow_page, stand_in
from PIL import Image
from xla_flags import UNOPTIMISED

GUIDES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
ALL = {
    path.relative_to(ROOT).as_posix(): path
    for path in [*ROOT.glob("README*.md"), *GUIDES, *sorted((ROOT / "docs").glob("*.md"))]
}
PAGES = [
    pytest.param(name, marks=() if name == "README.md" else pytest.mark.long)
    for name in ALL
    if ".zh." not in name
]
"""`make test` follows the first page, and `make test-all` all."""
CHINESE = [name for name in ALL if ".zh." in name]
DRAW = ROOT / "docs" / "pictures" / "draw.py"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#]*)[^)]*\)")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder with `python` and `vitswin`, for what a page gives to a shell."""
    folder = tmp_path_factory.mktemp("bin")
    for name, module in (("python", ""), ("vitswin", "-m vitswin_jax.cli ")):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {module}"$@"\n')
        program.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def follow(tmp_path_factory, programs):
    """Follows pages in one process of its own: with one device, and no rule of the tests'."""
    given = stand_in(tmp_path_factory.mktemp("given"))
    own = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": UNOPTIMISED,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
        "VITSWIN_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    spawn = multiprocessing.get_context("spawn")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as process:
            yield lambda page, root: process.submit(
                follow_page, page, root, given=given, programs=programs
            ).result()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_true(name, tmp_path, follow):
    if not any(fence.runs for fence in read_page(ALL[name]).fences):
        pytest.skip("has nothing that runs here")
    follow(ALL[name], tmp_path)


@pytest.mark.parametrize(
    ("page", "what"),
    [
        ("```console\n$ vitswin models no_such_model\n```", "status 1"),
        ("```console\n$ vitswin --version\n0.0.0-never\n```", "prints"),
        ("```console\n$ vitswin --version\nerror: no\n```", "status 0"),
        ("```console\n$ echo one | cat\ntwo\n```", "prints"),
        ("```bash\nexit 3\n```", "status 3"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```", "prints"),
        ("```python\nimport numpy as np\nx = np.zeros((2, 3))  # (3, 2)\n```", "shape"),
        ("```python\n1 / 0\n```", "division"),
        ("```python\nx = 1\n```\n\n```python\nassert x == 2, 'it is 1'\n```", "it is 1"),
    ],
)
def test_a_page_that_is_not_true_fails(page, what, tmp_path, follow):
    (tmp_path / "page.md").write_text(page)
    with pytest.raises((AssertionError, ZeroDivisionError), match=what):
        follow(tmp_path / "page.md", tmp_path)


def test_pages_say_what_they_need(tmp_path):
    page = tmp_path / "page.md"
    for mark in ("needs: patience", "numbers: none", "network"):
        page.write_text(f"```console {mark}\n$ true\n```")
        with pytest.raises(ValueError, match="unknown"):
            read_page(page)
    page.write_text("# A\n```python\n1\n")
    with pytest.raises(ValueError, match="left open"):
        read_page(page)
    page.write_text("<!-- given: a b -->\n```python needs: gpu\n# B\n```\n## C\n```\nx\n```\n")
    read = read_page(page)
    assert [fence.runs for fence in read.fences] == [False, False]
    assert (read.headings, read.given) == ((2,), ("a", "b"))


def test_a_console_is_commands_and_what_they_print():
    text = "$ one \\\n    two\nshown\n\n$ three"
    assert list(commands(text)) == [("one     two", ["shown", ""]), ("three", [])]


@pytest.mark.parametrize(
    ("shown", "printed", "any_number", "same"),
    [
        ("a  b", "a b\n", False, True),
        ("a\n...\nd", "a\nb\nc\nd\n", False, True),
        ("a\n...\nd", "a\nb\nc\n", False, False),
        ("...", "", False, True),
        ("took ... s", "took 12 s", False, True),
        ("1.50 %", "2.25 %", False, False),
        ("1,234 of 1e-3, 1.5", "7 of 2, 0.25", True, True),
        ("1 of a", "7 of b", True, False),
        ("a", "a\nb", False, False),
    ],
)
def test_what_is_shown_is_compared(shown, printed, any_number, same):
    assert printed_as(shown.splitlines(), printed, any_number=any_number) is same


@pytest.mark.parametrize("name", CHINESE)
def test_languages_have_the_same_structure(name):
    chinese, english = read_page(ALL[name]), read_page(ALL[name.replace(".zh.", ".")])
    assert chinese.headings == english.headings
    assert chinese.given == english.given
    plain = [
        [(fence.language, fence.mark, fence.text) for fence in page.fences]
        for page in (chinese, english)
    ]
    assert plain[0] == plain[1]
    pictures, rows = (
        [re.findall(pattern, page.path.read_text(), re.M) for page in (chinese, english)]
        for pattern in (r"^!\[.*\]\((.*)\)$", r"^(\$\$.*|\|)")
    )
    assert pictures[0] == pictures[1]
    assert rows[0] == rows[1]


def _names(path):
    """What a module defines: classes, functions and constants, and what its classes define."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


@pytest.mark.parametrize("name", ALL)
def test_links_lead_somewhere(name):
    text = re.sub(r"^```[\s\S]*?^```$", "", ALL[name].read_text(), flags=re.M)
    for _, label, target in _LINK.findall(text):
        if not target or "://" in target:
            continue
        path = Path(os.path.normpath(ALL[name].parent / target))
        assert path.exists(), f"{name}: {target} is not there"
        if path.suffix == ".py" and re.fullmatch(r"`[A-Za-z_]\w*`", label):
            assert label.strip("`") in _names(path), f"{name}: {target} has no {label}"


def test_every_page_is_found_from_the_first():
    found, ahead = set(), ["README.md"]
    while ahead:
        found.add(name := ahead.pop())
        links = _LINK.findall(ALL[name].read_text())
        linked = {os.path.normpath(Path(name).parent / target) for _, _, target in links}
        ahead += linked & ALL.keys() - found
    assert found == ALL.keys()


def test_pictures_are_drawn_from_the_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DRAW.parent))
    drawn = runpy.run_path(str(DRAW))
    shown = {path.stem for path in DRAW.parent.glob("*.png")}
    assert shown == set(drawn["PICTURES"])
    assert all(path.stat().st_size < 100_000 for path in DRAW.parent.glob("*.png"))
    text = (ROOT / "docs" / "concepts.md").read_text()
    assert all(f"](pictures/{name}.png)" in text for name in shown)
    with mpl.rc_context(drawn["STYLE"]):
        for name in ("mask", "merging", "windows"):
            ours = np.asarray(Image.open(drawn["write"](name, tmp_path)).convert("RGB"), float)
            kept = np.asarray(Image.open(DRAW.parent / f"{name}.png").convert("RGB"), float)
            assert ours.shape == kept.shape
            assert np.abs(ours - kept).mean() < 2  # of 255: letters may be drawn otherwise
