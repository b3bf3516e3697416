"""`vitswin models`: published numbers, published weights, and patterns."""

import json
import subprocess
import sys

import pytest

from vitswin_jax.cli.models import giga
from vitswin_jax.weights.published import published


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


def test_the_list_needs_no_jax():
    script = (
        "import sys; from vitswin_jax.cli import main\n"
        "assert main(['models']) == main(['models', '--sources']) == 0\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=120)


def test_published_weights(vitswin):
    status, out, err = vitswin("models", "--sources", "swin_base_patch4_window12_384")
    assert (status, err) == (0, "")
    place = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
    assert out.splitlines() == [
        "swin/swin_base_patch4_window12_384",
        "  swin_base_patch4_window12_384  imagenet1k   384x384  84.50 %",
        f"  {place}swin_base_patch4_window12_384.pth",
        "swin/swin_base_patch4_window12_384_22k",
        "  swin_base_patch4_window12_384  imagenet22k  384x384",
        f"  {place}swin_base_patch4_window12_384_22k.pth",
        "swin/swin_base_patch4_window12_384_22kto1k",
        "  swin_base_patch4_window12_384  imagenet1k   384x384  86.40 %",
        f"  {place}swin_base_patch4_window12_384_22kto1k.pth",
    ]


def test_the_facts_of_all_weights_fit_a_terminal(vitswin):
    """Names and addresses are as long as they are, each on a line of its own."""
    _, out, _ = vitswin("models", "--sources")
    assert len(out.splitlines()) == 3 * len(published())
    assert max(map(len, out.splitlines()[1::3])) <= 80


def test_json(vitswin):
    _, out, _ = vitswin("models", "--sources", "mae/*base", "--json")
    finetuned = json.loads(out.splitlines()[1])
    assert finetuned["name"] == "mae/mae_finetuned_vit_base"
    assert (finetuned["top1"], finetuned["digest"]) == (83.664, "md5:1b25e9")
    _, out, _ = vitswin("models", "vit_base_patch16_224", "--json")
    assert json.loads(out)["parameters"] == 86_567_656


@pytest.mark.long
def test_one_model_is_shown_part_by_part(vitswin):
    status, out, err = vitswin("models", "swin_tiny_patch4_window7_224")
    assert (status, err) == (0, "")
    title, header, *rows, total, _ = out.splitlines()
    assert title == "swin_tiny_patch4_window7_224, one image of 224x224 pixels, float32"
    assert header.split() == ["part", "parameters", "multiply-adds", "activations"]
    assert [row.split()[0] for row in rows[:3]] == ["images", "patch_embed", "stage_0/block_0"]
    assert total.split()[:4] == ["all", "28,288,354", "4.49", "G"]  # as in Swin's table 1 (a)
    assert all(len(line) <= 80 for line in out.splitlines())
    _, other, _ = vitswin("models", "swin_tiny_patch4_window7_224.ms_in1k")
    assert other.splitlines()[1:] == out.splitlines()[1:]


def test_the_parts_of_weights(vitswin, workdir):
    status, out, _ = vitswin("models", workdir, "--json")
    found = json.loads(out)
    assert (status, found["img_size"]) == (0, [16, 16])
    assert [part["name"] for part in found["parts"]] == [
        "images", "patch_embed", "block_0", "block_1", "norm", "head", "rest"
    ]  # fmt: skip
    assert sum(part["parameters"] for part in found["parts"]) == found["parameters"]


def test_nothing_matches(vitswin):
    status, out, err = vitswin("models", "swin_tinny_patch4_window7_224")
    assert (status, out) == (1, "")
    assert "did you mean 'swin_tiny_patch4_window7_224'" in err
    assert err.count("\n") == 1
    status, out, err = vitswin("models", "--sources", "swin/swin_tinny_patch4_window7_224")
    assert (status, out) == (1, "")
    assert "did you mean 'swin/swin_tiny_patch4_window7_224'" in err


@pytest.mark.parametrize(
    ("count", "text"),
    [(313e6, "0.31 G"), (4.609e9, "4.61 G"), (17.58e9, "17.6 G"), (167.4e9, "167 G")],
)
def test_giga(count, text):
    assert giga(int(count)) == text
