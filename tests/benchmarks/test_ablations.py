"""Ablations: a row changes what it says and builds; differences are between runs of equal seeds."""

import jax
import jax.numpy as jnp
import pytest
from kinds import mostly_long
from scripts import script

from vitswin_jax.train.run.prepare import prepare
from vitswin_jax.train.run.recipe import read_recipe

with script("ablations") as ablations:
    ROWS = [(family, name) for family, rows in ablations.ROWS.items() for name in rows]


@pytest.mark.parametrize(
    ("family", "name"),
    mostly_long(ROWS, [("vit", "rotary positions"), ("swin", "no convolutions")]),
)
def test_a_row_changes_its_keys_and_builds(family, name):
    keys = [f"--{key}" for key in ("data.dataset=digits", "data.workers=0", "mesh.data=1")]
    recipe, changed = (
        read_recipe(f"speedrun:fashion,{family}", [*keys, *more])
        for more in ((), ablations.ROWS[family][name])
    )
    differing = {
        f"--{section}.{key}"
        for section in recipe
        if hasattr(recipe[section], "keys")
        for key in recipe[section]
        if recipe[section][key] != changed[section][key]
    }
    assert differing == {key.partition("=")[0] for key in ablations.ROWS[family][name]}
    run = prepare(changed)
    image = jnp.zeros((2, 28, 28, 1))
    logits, variables = jax.eval_shape(run.model.init_with_output, jax.random.key(0), image)
    assert logits.shape == (2, 10)
    jax.eval_shape(run.tx.init, variables["params"])
    batches = run.make_train_batches(0, 1)
    assert next(batches)["image"].shape == (recipe.data.batch_size, 28, 28, 1)
    batches.close()


def test_a_difference_is_between_runs_of_equal_seeds():
    runs = [
        {"family": "vit", "row": row, "seed": seed, "accuracy": accuracy}
        for row, seed, accuracy in (
            ("AdamW", 1, 0.75),
            ("the recipe", 0, 0.9),
            ("the recipe", 1, 0.8),
            ("AdamW", 0, 0.89),
            ("no shifts", 1, 0.81),
        )
    ]
    rows = ablations.accuracies(runs)["vit"]
    assert ablations.differences(rows, "AdamW") == pytest.approx([-5, -1])
    assert ablations.table("vit", rows) == [
        "| vit | the recipe | 2 | 85.00 ± 7.07 % |  |",
        "| vit | AdamW | 2 | 82.00 ± 9.90 % | -3.00 ± 2.83 |",
        "| vit | no shifts | 1 | 81.00 % | +1.00 |",
    ]


def test_the_picture_has_each_row_but_the_recipe(tmp_path):
    file = tmp_path / "differences.png"
    ablations.draw({"swin": {"the recipe": {0: 0.9}, "AdamW": {0: 0.8}}}, file)
    assert file.read_bytes().startswith(b"\x89PNG")
