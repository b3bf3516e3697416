"""Small models of each family with random weights, and their programs."""

import jax
import numpy as np
import pytest
from applied import apply
from flax.traverse_util import unflatten_dict

from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.export.program import make_program
from vitswin_jax.models.registry import create_model
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights.metadata import Metadata
from vitswin_jax.weights.shapes import parameter_shapes

_SWIN = {
    "img_size": (20, 28), "patch_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 4),
    "window_size": 3, "num_classes": 7,
}  # fmt: skip
_VIT = {"img_size": (8, 16), "patch_size": 4, "embed_dim": 16, "num_heads": 2, "num_classes": 5}

MODELS = {  # Swin's maps, 5x7 and 3x4, are padded to whole windows, and the first is shifted
    "vit": ("vit", {**_VIT, "depth": 2}),
    "pool": (
        "vit",
        {
            **_VIT, "depth": 1, "global_pool": "map", "class_token": False, "reg_tokens": 2,
            "act": "gelu_tanh", "init_values": 0.1, "num_classes": 0,
        },
    ),
    "distilled": ("vit", {**_VIT, "depth": 1, "dist_token": True}),
    "rotary": ("vit", {**_VIT, "depth": 1, "rope_type": "mixed", "act": "swiglu"}),
    "swin": ("swin", _SWIN),
    "swin_mlp": ("swin_mlp", {**_SWIN, "depths": (2,), "num_heads": (2,)}),
    "swinv2": ("swinv2", {**_SWIN, "pretrained_window_sizes": (0, 0)}),
}  # fmt: skip


@pytest.fixture(scope="session")
def make():
    """Makes a small model's program, once for each choice; weights are random, and so not zero."""
    made = {}

    def make(key, **options):
        choice = (key, *sorted(options.items()))
        if choice not in made:
            name, fields = MODELS[key]
            model = create_model(name, **fields)
            metadata = Metadata(
                name=name,
                fields={},
                preprocess=Preprocess(
                    img_size=pair(model.img_size), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
                ),
                class_names=tuple(f"Klasse {i} ä" for i in range(model.num_classes)) or None,
            )
            made[choice] = make_program(
                model, random_variables(model), metadata=metadata, **options
            )
        return made[choice]

    return make


@pytest.fixture(name="random_variables")
def random_variables_of():
    return random_variables


def random_variables(model):
    rng = np.random.default_rng(0)

    def fill(name, shape):
        one = name.endswith(("scale", "gamma"))
        return (one + 0.3 * rng.standard_normal(shape)).astype(np.float32)

    flat = {name: fill(name, shape) for name, shape in parameter_shapes(model).items()}
    return {"params": unflatten_dict(flat, sep="/")}


@pytest.fixture(scope="session")
def forward():
    """The model itself, in JAX, on normalised images."""

    def forward(program, images):
        variables = {"params": unflatten_dict(dict(program.params), sep="/")}
        with jax.default_matmul_precision("highest"):
            return np.asarray(apply(program.model, variables, images))

    return forward
