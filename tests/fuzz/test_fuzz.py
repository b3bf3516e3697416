"""Fixed draws of every kind; `python -m tests.fuzz` runs as many as one likes."""

import logging
import random

import pytest
from kinds import mostly_long

from fuzz import mutate
from fuzz.judge import CHANGED, EQUAL, FAULT, REFUSED, Case
from fuzz.seeds import KINDS

DRAWS = 12
UNSEEN = ("pth-legacy", "safetensors", "shard", "npz-members", "pth-members", "native-metadata")
"""Kinds without checksums, and those whose checksums are made right again."""


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("kind", mostly_long(KINDS, [kind for kind in KINDS if kind != "workdir"]))
def test_inputs_are_right_or_refused_in_one_line(tmp_path, kind):
    case = Case(kind, tmp_path)
    for draw in range(DRAWS):
        outcome, text = case.judge(draw)
        assert outcome != FAULT, f"{kind} {draw}: {text}"


FILES = ("native", "npz", "npz-deflated", "pth", "pth-deflated")


@pytest.mark.parametrize("kind", mostly_long(FILES, ["native", "npz"]))
def test_no_flipped_bit_changes_a_number_in_silence(tmp_path, kind):
    case = Case(kind, tmp_path)
    case.mutated = lambda draw: mutate.flip(case.data, random.Random(draw))
    outcomes = {case.judge(draw)[0] for draw in range(40)}
    assert outcomes <= {REFUSED, EQUAL}


def test_a_change_is_seen(tmp_path):
    """The judge's own test: a number that changed, an exception, and a long line."""
    case = Case("safetensors", tmp_path)
    case.mutated = lambda draw: case.data[:-1] + bytes([case.data[-1] ^ 1])
    assert case.judge(0)[0] == CHANGED
    case.mutated = lambda draw: case.data
    assert case.judge(0)[0] == EQUAL
    case.fields = {"num_heads": object()}
    assert case.judge(0)[0] in (FAULT, REFUSED)


def test_inputs_are_a_function_of_kind_and_draw(tmp_path):
    first, second = Case("pth", tmp_path / "a"), Case("pth", tmp_path / "b")
    assert [first.mutated(draw) for draw in range(9)] == [second.mutated(draw) for draw in range(9)]
    assert len({first.mutated(draw) for draw in range(9)}) > 5
