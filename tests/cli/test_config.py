"""`vitswin config`: a recipe, resolved."""

import json

from vitswin_jax.core.recipes import recipe_names
from vitswin_jax.train.run.recipe import read_recipe


def test_each_key_is_printed_and_what_differs_has_its_default(vitswin):
    status, out, _ = vitswin("config", "digits:vit", "--epochs=7", "--data.holdout=0.25")
    assert status == 0
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    assert rows["optim.epochs"] == ["7.0", "default:", "100.0"]
    assert rows["model.img_size"] == ["16", "default:", "224"]
    assert rows["data.holdout"] == ["0.25"]
    status, changed, _ = vitswin("config", "digits:vit", "--epochs=7", "--changed")
    lines = out.splitlines()
    assert [line.split() for line in changed.splitlines()] == [
        line.split() for line in lines if "default:" in line or line is lines[-1] or not line
    ]


def test_json_is_the_config(vitswin):
    status, out, _ = vitswin("config", "folder:swin_tiny_patch4_window7_224", "./photos", "--json")
    assert status == 0
    config = read_recipe("folder:swin_tiny_patch4_window7_224")
    config.data.dataset = "./photos"
    assert json.loads(out) == json.loads(config.to_json())


def test_without_a_recipe_it_lists_them(vitswin):
    status, out, _ = vitswin("config")
    assert status == 0
    assert all(f"  {name} " in out for name in recipe_names())


def test_another_model_brings_its_sizes(vitswin):
    _, out, _ = vitswin("config", "digits:vit", "--model=swin_tiny_patch4_window7_224", "--json")
    model = json.loads(out)["model"]
    assert (model["name"], model["embed_dim"]) == ("swin_tiny_patch4_window7_224", 96)
    _, named, _ = vitswin(
        "config", "digits:vit", "--config.model.name=swin_tiny_patch4_window7_224", "--json"
    )
    assert named == out
