"""Plain English, as far as phrases show it: CONTRIBUTING.md has the rule that they follow from."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".html", ".yaml", ".sbatch", ".toml"}
FOLDERS = ("vitswin_jax", "configs", "docs", "benchmarks", "tests")
FILES = sorted(
    path
    for path in [*ROOT.iterdir(), *(each for name in FOLDERS for each in (ROOT / name).rglob("*"))]
    if path.suffix in SUFFIXES and path != Path(__file__)
)
SOURCES = [path for path in FILES if path.suffix == ".py" and ROOT / "tests" not in path.parents]

# A phrase that readers had to decode -> what to write.
PHRASES = {
    r"behind (the|it|them|each|every|its|their)": "after",
    r"goes on\b": "resumes, continues",
    r"go on (with|from)\b": "resume, continue",
    r"so many (steps|epochs|evaluations)": "every N steps",
    r"by (itself|themselves)": "automatically, separately, alone",
    r"(is|are|was) told\b": "is given",
    r"(is|are|was) said\b": "is reported",
    r"\ba line a log": "one line per log",
    r"manieth": "index",
}
WORDS = {"pull": "cotangent", "pull_in": "input_cotangent"}
QUESTIONS = ("What", "Which", "Whose", "That", "How", "Where")
UNNAMED = re.compile(
    r"(Returns|Gives|Yields|Reads|Makes|Writes|Adds|Takes) (what|which|whose|where)\b"
)
"""A verb without its object: name the thing that a function returns."""


def phrases_in(text):
    """Each banned phrase of a text, with what to write; a phrase may run over a line's end."""
    flat = re.sub(r"\s+(# )?", " ", text)
    for phrase, better in PHRASES.items():
        for found in re.finditer(phrase, flat, re.IGNORECASE):
            yield f"...{flat[max(0, found.start() - 40) : found.end() + 20]}...: write {better}"


def docstrings(tree):
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", "the module"), text


def test_phrases_are_plain():
    assert not [
        f"{path}: {fault}"
        for path in FILES
        for fault in phrases_in(path.read_text(encoding="utf-8"))
    ]


def test_docstrings_open_with_a_noun_or_a_verb():
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert not [
        f"{path}: {name}: {text.splitlines()[0]}"
        for path, tree in trees.items()
        for name, text in docstrings(tree)
        if text.startswith(tuple(f"{word} " for word in QUESTIONS)) or UNNAMED.match(text)
    ]
    assert not [
        f"{path}:{node.lineno}: {node.id}: write {WORDS[node.id]}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id in WORDS
    ]


def test_the_lint_finds_what_it_looks_for():
    found = list(phrases_in("The run\n# goes on with what is said\nbehind the block."))
    assert [line.rsplit(": ", 1)[1] for line in found] == [
        "write after",
        "write resumes, continues",
        "write is reported",
    ]
    assert UNNAMED.match("Returns what a file states.") and not UNNAMED.match("Returns a file.")
