"""Names that act on terminals, are no UTF-8, or look like markup: all commands take and show them.

What is printed is compared with what may be printed, by bytes; the commands run in this process,
and some in processes whose locale is ASCII, where Python itself calls files otherwise.
"""

import html.parser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kinds import mostly_long
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.data.prepare import prepare
from vitswin_jax.data.sources.open import open_source
from vitswin_jax.weights.locate import locate
from vitswin_jax.weights.open import open_pretrained
from vitswin_jax.weights.save import save_pretrained

CLASSES = [
    b"\x1b[31mred\nline", b"caf\xe9", "\u202ebidi".encode(), b"<script>alert(1)<_script>",
    b"=cmd|calc", b"$x_{$", "M\xe4dchen\u732b".encode(), b"a\"b'c&d\r", b"-rf", b"%s%n",
]  # fmt: skip
FILES = [b"\xff\xfe.png", b"\x1b]0;title\x07.png", b"new\nline.png", b'<b>&".png', b"[x]{a,b}.png"]
PROCESSES = {
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
              "PYTHONIOENCODING": "ascii"},
    "cp1252": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
               "PYTHONIOENCODING": "cp1252"},
    "narrow": {"TERM": "dumb", "COLUMNS": "0"},
}  # fmt: skip


def as_text(name):
    return name.decode("utf-8", "surrogateescape")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("names")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        folder = root / os.fsdecode(name)
        folder.mkdir()
        for file in FILES:
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            with (folder / os.fsdecode(file)).open("wb") as out:
                Image.fromarray(pixels).save(out, "PNG")
    return root


@pytest.fixture
def weights(tmp_path, vit, images):
    names = tuple(sorted(map(as_text, CLASSES)))
    metadata = {
        "preprocess": Preprocess(img_size=(16, 16)),
        "class_names": names,
        "provenance": {"dataset": str(images), "test_split": "all"},
    }
    model, variables = vit
    folder = tmp_path / "run\x1b[2J\n"
    folder.mkdir()
    save_pretrained(folder, model, variables, metadata=metadata)
    assert open_pretrained(folder).class_names == names
    return folder


def check_shown(*texts):
    for text in texts:
        assert all(line.isprintable() for line in text.split("\n"))
        text.encode()  # no part of a letter


COMMANDS = [
    ["predict", "RUN", "DATA", "--sheet", "OUT.png", "--features", "OUT.npz"],
    ["evaluate", "RUN", "DATA", "--split", "all", "--output", "OUT.html", "--figures", "OUT"],
    ["evaluate", "RUN", "--split", "all"],
    ["explain", "RUN", "DATA/=cmd|calc", "--out", "OUT", "--only", "rollout"],
    ["convert", "RUN", "OUT", "--to", "huggingface"],
    ["convert", "RUN", "OUT", "--to", "timm", "--verify"],
    ["export", "RUN", "OUT.stablehlo"],
    ["models", "RUN"],
]


@pytest.mark.parametrize(
    "arguments",
    mostly_long(COMMANDS, COMMANDS[:5:2]),
    ids=lambda arguments: " ".join(arguments[:1] + arguments[-2:]),
)
def test_each_command_shows_names_escaped(arguments, images, weights, tmp_path, vitswin):
    words = {"RUN": weights, "DATA": images, "OUT": tmp_path / "out\x1b\n"}
    arguments = [re.sub("RUN|DATA|OUT", lambda m: str(words[m[0]]), text) for text in arguments]
    status, out, err = vitswin(*arguments)
    assert (status, err) == (0, "") or arguments[0] == "convert"
    assert status == 0
    assert "\\x1b" in out
    check_shown(out, err)


def test_json_has_the_names_themselves(images, weights, vitswin):
    _, out, _ = vitswin("predict", weights, images, "--json", "--top-k", "10")
    check_shown(out)
    rows = [json.loads(line) for line in out.splitlines()]
    assert sorted(row["image"] for row in rows) == sorted(
        f"{images}/{as_text(folder)}/{as_text(file)}" for folder in CLASSES for file in FILES
    )
    names = {each["name"] for row in rows for each in row["predictions"]}
    assert names == set(map(as_text, CLASSES))
    _, out, _ = vitswin("evaluate", weights, images, "--split", "all", "--json")
    check_shown(out)
    assert {each["name"] for each in json.loads(out)["classes"]} == names


class Page(html.parser.HTMLParser):
    """The texts and the tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.texts += [value for _, value in attributes if value]

    def handle_data(self, data):
        self.texts.append(data)


def test_a_report_has_the_names_as_text(images, weights, tmp_path, vitswin):
    report = tmp_path / "report.html"
    assert vitswin("evaluate", weights, images, "--split", "all", "--output", report)[0] == 0
    text = report.read_text(encoding="utf-8")
    check_shown(text)
    page = Page(text)
    assert "script" not in page.tags
    shown = " ".join(page.texts)
    for name in (
        r"\x1b[31mred\nline",
        r"caf\udce9",
        "<script>alert(1)<_script>",
        "M\xe4dchen\u732b",
    ):
        assert name in shown


def test_a_table_names_files_that_are_no_utf_8(images):
    table = images / "table.csv"
    rows = [b'"' + name + b"/" + FILES[0] + b'",' + str(i % 2).encode()
            for i, name in enumerate(CLASSES) if b'"' not in name]  # fmt: skip
    table.write_bytes(b"path,label\n" + b"\n".join(rows) + b"\n")
    source = open_source(str(table), split="all")
    assert len(source) == len(rows)
    assert all(source[i]["image"].startswith(b"\x89PNG") for i in range(len(source)))
    table.write_bytes(b"path,label\n" + rows[0] + b"\n" + rows[1] + b"\xe9\n")
    with pytest.raises(UserError, match="is not UTF-8 text: line 4"):
        open_source(str(table), split="all")
    table.unlink()


def test_tfds_cannot_keep_them_all(images, tmp_path):
    with pytest.raises(UserError, match=r"class name .*cannot be stored by TFDS, which needs"):
        prepare(str(images), data_dir=tmp_path, name="names")


def test_cells_that_spreadsheets_would_run_are_json_only(images, weights, vitswin):
    """No command writes CSV, whose cells may begin with =; a table on a terminal is text."""
    _, out, _ = vitswin("predict", weights, images / "=cmd|calc", "--top-k", "10")
    assert re.search(r"^  =cmd\|calc +\d", out, re.MULTILINE)


def run_apart(arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "vitswin_jax.cli", *map(os.fspath, arguments)],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **env},
        check=False,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("ascii", "evaluate"),
        *(
            pytest.param(kind, command, marks=pytest.mark.long)
            for kind in PROCESSES
            for command in ("predict", "evaluate", "json")
            if (kind, command) != ("ascii", "evaluate")
        ),
    ],
)
def test_a_terminal_of_any_encoding(kind, command, images, weights, tmp_path):
    arguments = {
        "predict": ["predict", weights, images],
        "json": ["predict", weights, images, "--json"],
        "evaluate": [
            "evaluate",
            weights,
            images,
            "--split",
            "all",
            "--output",
            tmp_path / "r.html",
        ],
    }[command]
    done = run_apart(arguments, **PROCESSES[kind])
    assert (done.returncode, done.stderr) == (0, b"")
    encoding = PROCESSES[kind].get("PYTHONIOENCODING", "utf-8")
    out = done.stdout.decode(encoding)
    check_shown(out)
    if command == "json":
        rows = [json.loads(line) for line in out.splitlines()]
        names = {each["name"] for row in rows for each in row["predictions"]}
        assert names <= set(map(as_text, CLASSES))
        assert all(Path(os.fsdecode(os.fsencode(row["image"]))).exists() for row in rows)
    else:
        assert r"\x1b[31mred\nline" in out
        assert {"ascii": r"M\xe4dchen\u732b", "cp1252": "M\xe4dchen\\u732b"}.get(
            kind, "M\xe4dchen\u732b"
        ) in out


@pytest.mark.long
@pytest.mark.parametrize("command", ["models", "convert", "export", "predict", "explain", "plan",
                                     "evaluate", "benchmark"])  # fmt: skip
def test_helps_and_lists_in_ascii(command):
    done = run_apart([command, "--help"], **PROCESSES["ascii"])
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


def test_a_name_that_is_an_error(vitswin):
    for arguments in (
        ["predict", "no\x1b[2J\nrun", "x.png"],
        ["predict", "no\udcff\u202erun", "x.png"],
        ["models", "\x1b[2J"],
    ):
        status, out, err = vitswin(*arguments)
        assert (status, out) == (1, "")
        assert err.count("\n") == 1
        check_shown(err)
    with pytest.raises(UserError):
        locate("a\x1b\nb")


@pytest.mark.parametrize(
    "suffix",
    mostly_long(["", ".safetensors", ".pth", ".npz", ".onnx", ".stablehlo"], ["", ".npz", ".onnx"]),
)
def test_files_that_are_written_may_be_no_utf_8(suffix, images, weights, tmp_path, vitswin):
    target = tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode())
    if suffix in (".onnx", ".stablehlo"):
        status, out, _ = vitswin("export", weights, target)
    else:
        to = {".pth": "timm", ".npz": "google", "": "huggingface"}.get(suffix, "native")
        status, out, _ = vitswin("convert", weights, target, "--to", to)
        found = vitswin("models", target)
        assert found[0] == 0 or "does not show num_heads" in found[2]  # timm's name says them
    assert status == 0
    assert target.exists()
    assert out.startswith(f"{tmp_path}/caf\\udce9")
    check_shown(out)
