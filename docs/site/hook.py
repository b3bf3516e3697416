"""The files of the documentation site, for `mkdocs build` (mkdocs.yml, `make docs`).

Each page keeps its path of the repository, so that the links which GitHub follows are right on the
site too. A file of the source that a page links to becomes a page that shows it. The reference
(Python, commands, recipes) is made from the package at each build and is never committed.
"""

import contextlib
import io
import logging
import os
import posixpath
import re
import tempfile
from pathlib import Path

import jax
import nbformat
import numpy as np
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from pymdownx.slugs import slugify

import vitswin_jax
from vitswin_jax.cli import main, whole_parser
from vitswin_jax.core.recipes import FOLDER, FROM_WEIGHTS, recipe_names

ROOT = Path(__file__).parents[2]
PAGES = ("*.md", "docs/*.md", "benchmarks/README.md")
PICTURES = ("docs/pictures/**/*.png",)
NOTEBOOKS = "notebooks/*.ipynb"
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n"
WEIGHTS = "vit_tiny_patch16_224.safetensors"

GROUPS = {
    "Models": ("create_model", "model_names"),
    "Weights": (
        "open_pretrained", "Pretrained", "load_pretrained", "load_metadata", "make_preprocess",
        "save_pretrained",
    ),
    "Training": ("fit", "Fitted", "Callback", "train.trajectory"),
    "Errors": ("UserError",),
}  # fmt: skip
"""The public names of the package; a name that is in none of them comes last, as "Others"."""

_LINK = re.compile(r"\]\(([^)#\s:]+)((?:#[^)]*)?)\)")
_FENCE = re.compile(r"^```[\s\S]*?^```$", re.MULTILINE)
_MARK = re.compile(r"^(```+\w+) (needs: \w+|numbers: any)$", re.MULTILINE)
_MATHS = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_LANGUAGES = {".py": "python", ".sh": "bash", ".sbatch": "bash", ".yaml": "yaml"}


def on_config(config):
    """Gives headings the anchors that GitHub gives them; keeps jieba, of the search, quiet."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    os.environ["COLUMNS"] = "100"  # of the commands' help
    logging.getLogger("jieba").setLevel(logging.WARNING)
    return config


def on_files(files, config):
    """Returns the site's files: the theme's, those of the repository and the generated ones."""
    own = [file for file in files if file.generated_by or file.src_dir != config.docs_dir]
    kept = [*PAGES, *PICTURES]
    paths = sorted({path for pattern in kept for path in ROOT.glob(pattern)})
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        own.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    made = {**_notebooks(), **_sources(paths), **_reference()}
    own += [File.generated(config, name, content=text) for name, text in made.items()]
    return Files(own)


def on_page_markdown(markdown, page, config, files):
    """Returns a page as Python-Markdown reads what GitHub reads: links, marks of fences, tables."""
    start = posixpath.dirname(page.file.src_uri)

    def link(match):
        target, anchor = match.groups()
        name = posixpath.normpath(posixpath.join(start, target))
        shown = name.removesuffix(".ipynb") + ".md" if name.endswith(".ipynb") else f"{name}.md"
        if files.get_file_from_path(name) is None and files.get_file_from_path(shown) is not None:
            target = posixpath.relpath(shown, start or ".")
        return f"]({target}{anchor})"

    parts = re.split(rf"({_FENCE.pattern})", markdown, flags=re.MULTILINE)
    parts[::2] = [_cells(_LINK.sub(link, part)) for part in parts[::2]]
    return _MARK.sub(_mark, "".join(parts))


def on_page_content(html, page, config, files):
    """Returns a page with its equations as MathML, which browsers draw without a script."""
    return _MATHS.sub(_equation, html)


def _mark(match):
    """Shows what a command needs as the title of its block; other marks are for the tests."""
    fence, mark = match.groups()
    shown = fence.endswith("console") and mark.startswith("needs")
    return f'{fence} title="{mark}"' if shown else fence


def _cells(text):
    r"""Returns a text whose tables have `a|b` in code, where GitHub wants `a\|b`."""
    return re.sub(r"^\|.*$", lambda row: re.sub(r"`[^`]*`", _plain, row[0]), text, flags=re.M)


def _plain(code):
    return code[0].replace(r"\|", "|")


def _equation(match):
    kind, text = match.groups()
    for escaped, letter in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        text = text.replace(escaped, letter)
    display = "block" if kind == "div" else "inline"
    return f'<{kind} class="equation">{convert(text, display=display)}</{kind}>'


def _notebooks():
    """Returns each notebook as a page, with its cells as they are: nothing is executed."""
    exporter = MarkdownExporter()
    return {
        path.relative_to(ROOT).with_suffix(".md").as_posix(): exporter.from_notebook_node(
            nbformat.read(path, as_version=4)
        )[0]
        for path in sorted(ROOT.glob(NOTEBOOKS))
    }


def _sources(pages):
    """Returns a page for each file of the source to which a page links."""
    linked = {
        os.path.normpath(page.parent / target)
        for page in pages
        if page.suffix == ".md"
        for target, _ in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))
    }
    found = {}
    for path in map(Path, sorted(linked)):
        if path.is_file() and path.suffix not in (".md", ".png", ".ipynb"):
            name = path.relative_to(ROOT).as_posix()
            shown = _fence(path.read_text(encoding="utf-8"), _LANGUAGES.get(path.suffix, "text"))
            found[f"{name}.md"] = f"{UNSEARCHED}# {name}\n\n{shown}"
    return found


def _reference():
    """Returns the pages that the package itself writes."""
    known = {name for names in GROUPS.values() for name in names}
    others = tuple(name for name in vitswin_jax.__all__ if name[0] != "_" and name not in known)
    groups = GROUPS | ({"Others": others} if others else {})
    python = ["# Python reference", "`import vitswin_jax` gives these names."]
    for group, names in groups.items():
        python += [f"## {group}", *(f"::: {_home(name)}" for name in names)]
    recipes = ["# Recipes", "Each page has all keys of the recipe, with their values.", ""]
    pages = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        _write_weights()
        for name, summary in recipe_names().items():
            recipes.append(f"- [{name}](recipes/{name}.md): {summary}")
            pages[f"reference/recipes/{name}.md"] = _recipe(name)
    return {
        "reference/python.md": "\n\n".join(python),
        "reference/commands.md": _commands(),
        "reference/recipes.md": "\n".join(recipes),
        **pages,
    }


def _home(name):
    """Returns the path of a public name where it is defined."""
    thing = vitswin_jax
    for part in name.split("."):
        thing = getattr(thing, part)
    return f"{thing.__module__}.{thing.__qualname__}"


def _commands():
    """Returns the page of all commands: what `--help` prints."""
    (commands,) = [each.choices for each in whole_parser()._actions if each.choices]
    parts = ["# Commands", _fence(_printed("--help"))]
    for name in commands:
        parts += [f"## vitswin {name}", _fence(_printed(name, "--help"))]
    return "\n\n".join(parts)


def _write_weights():
    """Writes the file from which the fine-tuning recipe starts; only its fields are shown."""
    model = vitswin_jax.create_model("vit_tiny_patch16_224")
    images = np.zeros((1, 224, 224, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    vitswin_jax.save_pretrained(WEIGHTS, model, variables)


def _recipe(name):
    """Returns the page of a recipe: its file's docstring, its keys, and the file."""
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    command = f"{name}:{WEIGHTS}" if name == FROM_WEIGHTS else name
    return "\n\n".join(
        [
            f"# Recipe {name}",
            f"What `vitswin config {command}` prints:",
            _fence(_printed("config", command)),
            f"The file `configs/{name}.py`:",
            _fence(text, "python"),
        ]
    )


def _printed(*arguments):
    """Returns the output of a `vitswin` command; raises RuntimeError if it fails."""
    stream = io.StringIO()
    try:
        with contextlib.redirect_stdout(stream):
            status = main(list(arguments))
    except SystemExit as end:
        status = end.code
    if status:
        raise RuntimeError(f"vitswin {' '.join(arguments)}: exit status {status}")
    return stream.getvalue()


def _fence(text, language="text"):
    return f"````{language}\n{text.rstrip()}\n````"
