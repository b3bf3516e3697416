"""Recipes as configs: files of one's own, neighbours, models and mistakes."""

import sys

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from vitswin_jax.core import recipes
from vitswin_jax.core.types import UserError
from vitswin_jax.models.registry import create_model, model_kwargs
from vitswin_jax.train.run.recipe import read_defaults, read_recipe, set_model
from vitswin_jax.weights.save import save_pretrained
from vitswin_jax.weights.shapes import parameter_shapes

OWN = """
from configs import base, neighbour


def get_config(name="vit"):
    return base.recipe(model={"name": name}, optim={"epochs": neighbour.EPOCHS})
"""


@pytest.fixture
def own(tmp_path):
    """A recipe of one's own, which imports a neighbour and the package's `base`."""
    (tmp_path / "neighbour.py").write_text("EPOCHS = 3.0\n")
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def test_a_recipe_of_ones_own_has_its_neighbours_and_the_packages(own):
    before = {name for name in sys.modules if name.partition(".")[0] == "configs"}
    config = read_recipe(f"{own}:swin", ["--optim.peak_lr=0.5", "--config.seed=4"])
    assert (config.model.name, config.optim.epochs) == ("swin", 3.0)
    assert (config.optim.peak_lr, config.seed) == (0.5, 4)
    assert {name for name in sys.modules if name.partition(".")[0] == "configs"} == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "own.py: has no function get_config"),
        ("def get_config():\n    return {}\n", "must return a ConfigDict; it returns dict"),
        ("def get_config(:\n", "own.py, line 1: invalid syntax"),
        ("\nimport nowhere_at_all\n", "own.py, line 2: ModuleNotFoundError: No module named"),
        ("from configs import base\n\ndef get_config():\n    return base.recipe(\n"
         "        model={'name': 'vit'}, optim={'peak_rl': 1}\n    )\n",
         "own.py, line 4: KeyError: .*peak_lr"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_recipe_is_a_line_with_its_place(own, text, message):
    own.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_recipe(str(own))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["vit", "swin_tiny_patch4_window7_224"])
def test_defaults_are_bases_and_the_models(name):
    defaults = read_defaults(name)
    fields = defaults.model.to_dict()
    assert fields.pop("name") == name and fields.pop("num_classes") is None
    own = {k: v for k, v in model_kwargs(name).items() if k != "num_classes"}
    assert fields == own | {"dtype": "auto"}
    assert defaults.data.batch_size == 128


def test_another_model_has_its_own_sizes_and_the_recipes_other_changes():
    config = read_recipe("folder:vit_tiny_patch16_224", ["--model.dtype=bfloat16"])
    set_model(config, "swin_tiny_patch4_window7_224")
    expected = model_kwargs("swin_tiny_patch4_window7_224") | {"num_classes": None}
    expected |= {"name": "swin_tiny_patch4_window7_224", "dtype": "bfloat16"}
    assert config.model.to_dict() == expected | {"drop_path_rate": 0.1}
    with pytest.raises(UserError, match="did you mean 'vit_small_patch16_224'"):
        set_model(config, "vit_small_patch16_22")


def test_every_recipe_is_read_by_its_name():
    for name in recipes.recipe_names():
        if name != "finetune":  # whose argument is weights
            assert read_recipe(name).is_locked


def test_fine_tuning_takes_the_weights_own_sizes(tmp_path):
    """Those of a run that changed its variant's, so that it can be started from."""
    sizes = {"img_size": 32, "depth": 1}
    model = create_model("vit_tiny_patch16_224", num_classes=3, **sizes)
    shapes = parameter_shapes(model)
    flat = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    variables = {"params": unflatten_dict(flat, sep="/")}
    weights = tmp_path / "weights.safetensors"
    save_pretrained(weights, model, variables, metadata={"name": "vit_tiny_patch16_224"})
    config = read_recipe(f"finetune:{weights}")
    assert config.init_from == str(weights)
    fields = config.model.to_dict()
    assert {key: fields[key] for key in sizes} == sizes
    name = fields.pop("name")
    fields |= {"num_classes": 3, "dtype": "float32"}
    assert parameter_shapes(create_model(name, **fields)) == shapes
