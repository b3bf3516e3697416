"""A folder of images, an evaluation that is wrong on purpose, and the models they are shown to."""

import numpy as np
import pytest
from drawn import draw
from PIL import Image

from vitswin_jax.data.sources.open import open_source
from vitswin_jax.evaluate.evaluation import summarize
from vitswin_jax.models.registry import create_model

CLASS_NAMES = ("$x_ & {{y}}", "<b>bold<script>", "日本")
TINY = {
    "vit": {"img_size": (16, 24), "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "swin": {
        "img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 3), "num_heads": (2, 4),
        "window_size": (2, 4),
    },
}  # fmt: skip
TINY["swinv2"] = TINY["swin"] | {"window_size": 4, "pretrained_window_sizes": (0, 0)}


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Twelve images, of classes 0, 0, 0, 0, 1, ...; image i is all of colour i."""
    root = tmp_path_factory.mktemp("images")
    for i in range(12):
        folder = root / "test" / CLASS_NAMES[i // 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), (i, i, i)).save(folder / f"{i:02}.png")
    return open_source(str(root), split="test")


@pytest.fixture(scope="session")
def evaluation(source):
    """Image 5 is most wrong, then 2, 9; the others are right."""
    labels = np.array([source[i]["label"] for i in range(12)])
    logits = 3 * np.eye(3, dtype=np.float32)[labels]
    for i, margin in ((5, 9), (2, 6), (9, 4)):
        logits[i, (labels[i] + 1) % 3] = margin
    return summarize(logits, labels, source.class_names)


@pytest.fixture(params=["vit", "swin", "swinv2"])
def model_and_params(request):
    model = create_model(request.param, num_classes=3, **TINY[request.param])
    return model, draw(model, scale=1.0)["params"]
