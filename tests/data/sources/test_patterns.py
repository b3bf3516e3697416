"""Braces as a shell expands them, and the split that a file's name says."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.data.sources.patterns import by_split, expand, expand_braces

PATTERNS = ["x", "a{0..3}", "a{08..12}.tar", "{a,b}{1..2}", "{train-{0..2},val-{00..01}}.tar",
            "a{b,}c", "a{b,c", "{000..002}/{x,y}"]  # fmt: skip


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_braces_are_a_shells(pattern):
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True
    )
    assert list(expand_braces(pattern)) == printed.stdout.split()


def test_files_are_found_and_missing_ones_listed(tmp_path):
    for name in ("a-0.tar", "a-1.tar", "b-0.tar"):
        (tmp_path / name).touch()
    found = expand(f"{tmp_path}/{{b,a}}-*.tar")
    assert [path.rpartition("/")[2] for path in found] == ["b-0.tar", "a-0.tar", "a-1.tar"]
    with pytest.raises(UserError) as caught:
        expand(f"{tmp_path}/{{a-{{0..3}},c-*}}.tar")
    missing = ", ".join(f"{tmp_path}/{name}.tar" for name in ("a-2", "a-3", "c-*"))
    assert str(caught.value).endswith(f"no such file(s): {missing}.")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.csv", "train"),
        ("train-000001.tar", "train"),
        ("imagenet1k-validation-07.tar", "validation"),
        ("cifar_test_3.tar", "test"),
        ("val3.tar", "val"),
        ("gs://bucket/test/flowers-0001.tar", "all"),
        ("training-0.tar", "train"),
        ("Testing.csv", "test"),
        ("trainers-0.tar", "all"),
        ("0001.tar", "all"),
    ],
)
def test_the_split_is_the_last_word_of_a_name(name, split):
    assert by_split([name], "x") == {split: [name]}
