"""The groups of blocks that a scan over a Swin stage repeats, and their parameters' layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from vitswin_jax import create_model
from vitswin_jax.nn.scan import groups_of, is_stacked, row_paths, stack_blocks, unstack_blocks

TINY = {
    "patch_size": 2,
    "img_size": 16,
    "window_size": 4,
    "embed_dim": 8,
    "num_heads": (2, 4),
    "num_classes": 5,
}


@pytest.mark.parametrize(
    ("depth", "norm_after", "want"),
    [
        (1, (), (2, 0, False)),
        (7, (), (2, 3, False)),
        (2, (1,), (2, 1, False)),  # after the stage, so outside its pair
        (4, (1, 3), (2, 2, True)),
        (4, (1,), (2, 1, True)),  # the last stage's last norm is the model's own
        (42, tuple(range(5, 42, 6)), (6, 7, True)),
        (9, (3, 7, 8), (4, 2, True)),  # one block after the groups, and the norm of the stage
        (9, (2, 5, 8), (3, 0, True)),  # odd: the second group would begin with a shifted block
    ],
)
def test_groups(depth, norm_after, want):
    assert groups_of(depth, norm_after) == want


def shapes_of(model):
    images = jnp.zeros((1, 16, 16, 3))
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


@pytest.mark.parametrize("stage", [False, True])
@pytest.mark.parametrize("period", [0, 2, 3, 4])
def test_layouts_are_those_of_the_loops_and_the_scanned_model(period, stage):
    fields = {"extra_norm_period": period, "extra_norm_stage": stage, "depths": (5, 4)}
    model = create_model("swinv2_cr", **TINY, **fields)
    loop, scanned = shapes_of(model), shapes_of(model.clone(scan=True))
    assert jax.eval_shape(stack_blocks, loop) == scanned
    assert jax.eval_shape(unstack_blocks, scanned) == loop
    rows = [
        row
        for path, leaf in flatten_dict(scanned, sep="/").items()
        for row in (row_paths(path, leaf.shape) or [path])
    ]
    assert sorted(rows) == sorted(flatten_dict(loop, sep="/"))


def test_rows_are_numbered_as_the_loop_goes():
    """Each leaf of the loop holds a number of its own, which must come back to its path."""
    model = create_model("swinv2_cr", **TINY, extra_norm_period=4, depths=(9, 1))
    flat = flatten_dict(shapes_of(model), sep="/")
    numbered = {path: np.float32(i) for i, path in enumerate(flat)}
    stacked = stack_blocks(unflatten_dict(numbered, sep="/"))
    found = {}
    for path, leaf in flatten_dict(stacked, sep="/").items():
        assert is_stacked(path) == bool(leaf.shape), path
        rows = row_paths(path, leaf.shape) or [path]
        found |= zip(rows, np.atleast_1d(leaf), strict=True)
    assert found == numbered


@pytest.mark.parametrize(
    "run", ["blocks", "encoder/blocks", "stage_2/pairs", "stage_0/groups_of_4"]
)
def test_a_run_of_two_depths_is_refused(run):
    part = "" if run.endswith("blocks") else "/block_1"
    flat = {
        f"{run}{part}/{name}/scale": np.ones((depth, 3)) for name, depth in (("a", 2), ("b", 3))
    }
    with pytest.raises(
        ValueError, match=rf"{run}: the leading axes are \[2, 3\], and should be one"
    ):
        unstack_blocks(unflatten_dict(flat, sep="/"))


@pytest.mark.long
@pytest.mark.parametrize(("period", "remat"), [(4, "none"), (4, "full"), (2, "full")])
def test_scan_over_normed_groups_gives_the_loops_numbers_and_gradients(
    random_params, check_scan, period, remat
):
    fields = {"extra_norm_period": period, "extra_norm_stage": True, "depths": (9, 2)}
    model = create_model("swinv2_cr", **TINY, **fields)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    check_scan(model, random_params(model, images), images, remat=remat)
