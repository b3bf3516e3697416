"""The recipe of docs/deploy.md for qwix runs, where it is installed, and is near float32."""

import subprocess
import sys
from pathlib import Path

import pytest
from documents import read_page

from vitswin_jax import save_pretrained
from vitswin_jax.models.registry import create_model

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
MODELS = {
    "vit": {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "swin": {
        "img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 4),
        "window_size": 4,
    },
}  # fmt: skip
PRINTED = """
want = jax.jit(model.apply)(variables, images)
coded = [leaf for leaf in jax.tree.leaves(params) if leaf.dtype == jax.numpy.int8]
print(abs(logits - want).mean(), want.std(), len(coded))
"""
LAYERS = {"vit": 4 + 1, "swin": 3 * 4 + 1 + 1}
"""Products of blocks, of the reduction between stages, and of the head."""


@pytest.mark.long
@pytest.mark.parametrize("family", MODELS)
def test_the_recipe_quantises_products(family, random_variables, tmp_path):
    """In a process of its own: codes are no arrays, which the tests' rule on types refuses."""
    pytest.importorskip("qwix")
    model = create_model(family, **MODELS[family], num_classes=5)
    (tmp_path / "runs/quickstart/vit").mkdir(parents=True)
    save_pretrained(tmp_path / "runs/quickstart/vit", model, random_variables(model))
    fences = read_page(PAGE).fences
    (recipe,) = [fence.text for fence in fences if "import qwix" in fence.text]
    done = subprocess.run(
        [sys.executable, "-c", f"{recipe}\n{PRINTED}"],
        check=False, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    difference, std, coded = map(float, done.stdout.split())
    assert 1e-4 * std < difference < 0.25 * std
    assert coded == LAYERS[family]
