"""`vitswin models`: published numbers, and patterns."""

import pytest

from vitswin_jax.cli.models import giga


def test_published_numbers(vitswin):
    """ViT-B/16 and Swin-T as their papers' tables have them."""
    status, out, err = vitswin("models", "*_base_patch*_224")
    assert (status, err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    assert rows["vit_base_patch16_224"] == ["86.6", "M", "17.6", "G", "224x224"]
    assert rows["swin_base_patch4_window7_224"] == ["87.8", "M", "15.4", "G", "224x224"]
    assert out.splitlines()[0].split() == ["model", "parameters", "multiply-adds", "image"]
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize("pattern", ["swin_large", "swin_large_*", "*n_large_patch?_w*"])
def test_parts_and_patterns(vitswin, pattern):
    _, out, _ = vitswin("models", pattern)
    assert [line.split()[0] for line in out.splitlines()[1:]] == [
        "swin_large_patch4_window12_384",
        "swin_large_patch4_window7_224",
    ]


def test_nothing_matches(vitswin):
    status, out, err = vitswin("models", "swin_tinny_patch4_window7_224")
    assert (status, out) == (1, "")
    assert "did you mean 'swin_tiny_patch4_window7_224'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("count", "text"),
    [(313e6, "0.31 G"), (4.609e9, "4.61 G"), (17.58e9, "17.6 G"), (167.4e9, "167 G")],
)
def test_giga(count, text):
    assert giga(int(count)) == text
