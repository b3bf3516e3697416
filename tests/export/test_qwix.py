"""The recipe of docs/deploy.md for qwix runs, where it is installed, and is near float32."""

from pathlib import Path

import jax
import numpy as np
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
LAYERS = {"vit": 4 + 1, "swin": 3 * 4 + 1 + 1}
"""Products of blocks, of the reduction between stages, and of the head."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # qwix's, of names in Flax
@pytest.mark.parametrize("family", MODELS)
def test_the_recipe_quantises_products(family, random_variables, tmp_path, monkeypatch):
    pytest.importorskip("qwix")
    model = create_model(family, **MODELS[family], num_classes=5)
    (tmp_path / "runs/quickstart/vit").mkdir(parents=True)
    save_pretrained(tmp_path / "runs/quickstart/vit", model, random_variables(model))
    monkeypatch.chdir(tmp_path)
    fences = read_page(PAGE).fences
    (recipe,) = [fence.text for fence in fences if "import qwix" in fence.text]
    names = {}
    exec(compile(recipe, str(PAGE), "exec"), names)
    want = np.asarray(jax.jit(names["model"].apply)(names["variables"], names["images"]))
    difference = np.abs(np.asarray(names["logits"]) - want).max()
    assert 1e-4 * want.std() < difference < 0.5 * want.std()
    kept = jax.tree.leaves_with_path(names["params"])
    coded = {jax.tree_util.keystr(path) for path, leaf in kept if leaf.dtype == np.int8}
    assert len(coded) == LAYERS[family]
