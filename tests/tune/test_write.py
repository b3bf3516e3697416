"""A written recipe: it reads back as the config, whatever differs from the defaults."""

from vitswin_jax.train.run.recipe import read_recipe
from vitswin_jax.tune.write import write_recipe


def test_a_written_recipe_is_the_config(tmp_path, make_config):
    config = make_config()
    config.update_from_flattened_dict(
        {
            "notes": 'a "quoted" text\\ with a line\nend',
            "optim.freeze": (".*block_0/.*",),
            "optim.peak_lr": 0.1 + 0.2,
            "data.dataset": "./flowers 樱花",
            "optim.total_steps": None,
        }
    )
    path = write_recipe(tmp_path / "run" / "recipe.py", config, ['says """this"""', "", "x " * 90])
    assert read_recipe(str(path)).to_dict() == config.to_dict()
    assert max(map(len, path.read_text().splitlines())) <= 100
    assert "drop_rate" not in path.read_text()  # what is as by default is left out


def test_another_model_keeps_its_fields(tmp_path):
    config = read_recipe("folder:swin_tiny_patch4_window7_224")
    path = write_recipe(tmp_path / "recipe.py", config, [])
    assert read_recipe(str(path)).to_dict() == config.to_dict()
