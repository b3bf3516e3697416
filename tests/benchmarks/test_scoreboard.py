"""The scoreboard's table, picture and page, of rows whose numbers are known."""

import ast
import sys
from pathlib import Path

import pytest
from scripts import FOLDER, script

from vitswin_jax.benchmark import peers
from vitswin_jax.benchmark.cases import FORMATS, Case, write_case
from vitswin_jax.benchmark.peers import PEERS
from vitswin_jax.benchmark.runner import Contestant, run_case
from vitswin_jax.core.types import UserError

BAD = {"scann": True}
TINY = Case("vit_tiny_patch16_224", batch_size=1, img_size=32)


@pytest.fixture(scope="module")
def board():
    with script("scoreboard") as module:
        yield vars(module)


def contestant(wall, ratio, version="2.0", difference=2e-6, peak=1_500_000_000):
    return {
        "wall": wall,
        "ours_to_it": {"median": ratio},
        "difference": difference,
        "first_s": 3.25,
        "peak_bytes": peak,
        "versions": {"python": "3.12.1", "lib": version},
    }


def row(**peers):
    return {
        "title": "ViT, inference",
        "date": "2026-11-28",
        "machine": "a CPU, 2 cores, Linux",
        "commit": "abc1234",
        "load": 0.25,
        "rounds": 3,
        "ours": contestant([0.02, 0.03, 0.01], 1.0, "1.0"),
        "peers": peers,
        "refused": {"jimm": "jimm: its process ended: no mesh"},
    }


def test_the_table_has_medians_with_the_fastest_peer_first(board):
    """Of the three rounds the median is neither the first nor the fastest."""
    slow = contestant([0.05, 0.08, 0.04], 0.4)
    quick = contestant([0.025, 0.026, 0.024], 0.8, peak=None)
    lines = board["table"]([row(timm=slow, equimo=quick)]).splitlines()
    assert lines[2:] == [
        "| **ViT, inference** | | | | | |",
        "| ours | 20.0 |  |  | 3.2 | 1500 |",
        "| equimo | 25.0 | 0.80 | 2.0e-06 | 3.2 |  |",
        "| timm | 50.0 | 0.40 | 2.0e-06 | 3.2 | 1500 |",
        "| jimm | failed | | | | |",
    ]
    assert {line.count("|") for line in lines} == {7}


def test_circumstances_are_dated_and_have_versions_and_failures(board):
    first, second = row(timm=contestant([1.0], 1.0)), row(timm=contestant([1.0], 1.0, "2.1"))
    text = board["circumstances"]([first, second | {"load": 1.5}])
    measured = "Measured on 2026-11-28, a CPU, 2 cores, Linux, commit abc1234, 3 rounds."
    assert text.startswith(f"{measured} Load after each row: 0.2, 1.5.")
    form = PEERS["timm"].how
    assert f"| timm | {form} | python 3.12.1, lib 2.0; python 3.12.1, lib 2.1 |" in text
    assert text.endswith("- jimm: its process ended: no mesh")


def test_the_picture_has_a_bar_for_each_peer_as_a_multiple_of_ours(board, tmp_path):
    one = row(timm=contestant([0.04], 0.5))
    rows = [row(timm=contestant([0.05], 0.4), equimo=contestant([0.025], 0.8)), one]
    figure = board["draw"](tmp_path / "board.png", rows)
    assert (tmp_path / "board.png").read_bytes().startswith(b"\x89PNG")
    first, second = figure.axes
    assert [bar.get_width() for bar in first.patches] == pytest.approx([1.25, 2.5])
    assert [label.get_text() for label in first.get_yticklabels()] == ["equimo", "timm"]
    assert first.get_title(loc="left") == "ViT, inference (ours: 20.0 ms)"
    assert [bar.get_width() for bar in second.patches] == [2.0]


def test_the_page_is_filled_between_its_comments_again_and_again(board):
    page = (FOLDER.parent / "docs" / "scoreboard.md").read_text(encoding="utf-8")
    filled = board["fill"](board["fill"](page, "old numbers"), "new numbers")
    assert "\n\nnew numbers\n\n" in filled and "old numbers" not in filled
    outside = [text.partition(board["BEGIN"])[0] for text in (page, filled)]
    assert outside[0] == outside[1]
    assert page.partition(board["END"])[2] == filled.partition(board["END"])[2] != ""
    with pytest.raises(UserError, match="must have the lines <!-- scoreboard: begin -->"):
        board["fill"]("# A page", "numbers")


def test_peers_that_are_not_there_are_skipped_with_a_line(board):
    found, skipped = board["contestants_of"](["timm=/nowhere/python"])
    assert found[0].kind == "ours"
    assert "timm: skipped; /nowhere/python has not all of torch, timm." in skipped
    assert len(found) + len(skipped) == 1 + len(PEERS)


def test_rows_exist_and_each_has_peers(board):
    for name, case in board["ROWS"].items():
        able = [peer for peer in PEERS if Contestant(peer, peer).can_run(case)]
        assert len(able) >= 5, name
        assert ("onnxruntime" in able) == (case.task == "inference")
    assert board["ROWS"]["dinov2-1"].kind == "dinov2"
    assert {peer.reads for peer in PEERS.values()} <= set(FORMATS)


def imported_at_once(path):
    """The modules that a file imports as soon as it is imported itself."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_a_peers_interpreter_needs_nothing_of_ours():
    """It may have another JAX, or none: only NumPy is sure."""
    paths = sorted(Path(peers.__file__).parent.glob("*.py"))
    assert len(paths) > 5
    for path in paths:
        for name in imported_at_once(path):
            own = name.startswith("vitswin_jax.benchmark.peers")
            assert own or name.split(".")[0] in {*sys.stdlib_module_names, "numpy"}, (path, name)


def test_what_a_peer_computes_otherwise_is_told_to_ours(tmp_path):
    """noxton's GELU: timm's layout cannot state it."""
    job = write_case(TINY, "timm-tanh", tmp_path)
    assert job["own"] == {"act": "gelu_tanh"}
    assert job["program"] is None


@pytest.mark.long
def test_a_peer_that_fails_leaves_the_others_their_times():
    ours, odd = (Contestant(name, "ours", variant=v) for name, v in [("ours", {}), ("odd", BAD)])
    runtime = Contestant("onnxruntime", "onnxruntime", sys.executable)
    (result,) = run_case(TINY, [ours, odd, runtime], rounds=1, strict=False)
    assert list(result["contestants"]) == ["ours", "onnxruntime"]
    assert result["refused"]["odd"].startswith("odd: its process ended: ")
    assert "scann" in result["refused"]["odd"]
    facts = result["contestants"]["onnxruntime"]
    assert 0 < facts["difference"] < 1e-4
    assert facts["versions"]["onnxruntime"]
