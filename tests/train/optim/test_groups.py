"""What trains, decays and at what rate: against the originals' own groups, and in both layouts."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from kinds import mostly_long

from vitswin_jax import create_model, load_pretrained
from vitswin_jax.core.types import UserError
from vitswin_jax.nn.scan import stack_blocks
from vitswin_jax.train.optim.groups import Groups, decay_mask
from vitswin_jax.train.optim.muon import matrix_axes
from vitswin_jax.train.optim.optimizers import make_tx
from vitswin_jax.train.sharding import create_mesh
from vitswin_jax.train.state import describe_trained, state_layout
from vitswin_jax.weights.formats.pth_write import write_pth

CASES = json.loads((Path(__file__).parents[2] / "goldens" / "train" / "originals.json").read_text())
FIELDS = {
    "swin": {"img_size": 32, "window_size": 4, "num_heads": (2, 4)},
    "vit": {"num_heads": 2},
}


def load_values(case, values, folder):
    """Our parameters, each full of the number that `values` gives the original's parameter."""
    fields = CASES[case]
    state = parity.make_state(fields["entries"])
    state |= {key: np.full_like(state[key], value) for key, value in values.items()}
    path = folder / f"{case}.pth"
    write_pth(path, state, wrapper="model")
    family = case.split("_")[0]
    _, variables = load_pretrained(path, family, **FIELDS[family.replace("v2", "")])
    return variables["params"]


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("case", ["vit_groups", "swin_layer_decay"])
def test_layer_decay_is_the_originals(case, scan, tmp_path):
    """MAE's (BEiT's) of a ViT, SimMIM's of a Swin: a file whose parameters are their own rates."""
    groups = CASES[case]["groups"]
    want = load_values(case, {key: scale for key, (scale, _) in groups.items()}, tmp_path)
    want = stack_blocks(want) if scan else want
    got = Groups(layer_decay=0.75).lr_scales(want)
    assert len({scale for scale, _ in groups.values()}) >= 4
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.broadcast_to(a, b.shape), b, rtol=1e-6),
        got,
        want,
    )


@pytest.mark.parametrize("case", ["vit_groups", "swin_sgd", "swinv2_adamw"])
def test_what_decays_is_the_originals(case, tmp_path):
    """A file whose parameters are 1 where the original decays them and 0 where it does not."""
    groups = CASES[case]["groups"]
    want = load_values(case, {key: decays for key, (_, decays) in groups.items()}, tmp_path)
    got = decay_mask(want)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.full(b.shape, a), b), got, want)


FAMILIES = (
    "vit_tiny_patch16_224",
    "vit_base_r50_s16_384",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_224",
    "vit_base_patch14_reg4_dinov2",
    "deit_base_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_ns_224",
    "swin_mlp_base_patch4_window7_224",
    "swin_moe_base_patch4_window12_192_16expert",
)


@pytest.mark.parametrize("name", mostly_long(FAMILIES, [*FAMILIES][::3]))
def test_every_family_has_a_rule_for_each_parameter(name):
    """Kernels alone decay, but for those of Swin V2's position biases."""
    model = create_model(name)
    images = jax.ShapeDtypeStruct((1, model.img_size, model.img_size, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    for path, decayed in flatten_dict(decay_mask(params), sep="/").items():
        assert decayed == (path.endswith("kernel") and "cpb_mlp" not in path), path
    scales = flatten_dict(Groups(layer_decay=0.5).lr_scales(params), sep="/")
    assert scales["head/kernel"] == 1.0
    first = "patch_embed/proj/kernel"
    assert min(scales.values()) == scales[first] < 0.001
    matrices = flatten_dict(matrix_axes(params), sep="/")
    assert matrices["head/kernel"] is matrices[first] is None
    of_input = [path for path in scales if path.startswith("norm_pre/")]  # as timm has it
    assert all(scales[path] == scales[first] for path in of_input)
    hidden = [path for path in matrices if path.endswith("kernel") and "block_" in path]
    assert {path for path in hidden if matrices[path] is None} == {
        path for path in hidden if "cpb_mlp" in path or "router" in path or "backbone" in path
    }


PARAMS = unflatten_dict(
    {
        "patch_embed/proj/kernel": np.zeros((2, 2, 3, 4)),
        "block_0/mlp/fc1/kernel": np.zeros((4, 8)),
        "block_0/mlp/fc1/bias": np.zeros(8),
        "block_1/mlp/fc1/kernel": np.zeros((4, 8)),
        "block_1/mlp/fc1/bias": np.zeros(8),
        "pre_logits/kernel": np.zeros((4, 4)),
        "head/kernel": np.zeros((4, 2)),
    },
    sep="/",
)


def test_the_first_pattern_rules():
    tables = {
        "lr_mults": (("head/.*", 10.0), (".*/kernel", 0.5)),
        "decay_mults": (("head/.*", 100.0), (r"block_1/.*", 2.0)),
    }
    rates = flatten_dict(Groups(**tables).lr_scales(PARAMS), sep="/")
    decays = flatten_dict(Groups(**tables).decay_scales(PARAMS), sep="/")
    assert rates["head/kernel"] == 10.0 and rates["pre_logits/kernel"] == 0.5
    assert rates["block_0/mlp/fc1/bias"] == 1.0
    assert decays["head/kernel"] == 100.0 and decays["pre_logits/kernel"] == 1.0
    assert decays["block_0/mlp/fc1/bias"] == 0.0 and decays["block_1/mlp/fc1/bias"] == 2.0


def test_stacked_blocks_answer_to_the_names_of_their_rows():
    stacked = stack_blocks(PARAMS)
    groups = Groups(lr_mults=(("block_1/.*", 3.0),), layer_decay=0.5)
    rates = flatten_dict(groups.lr_scales(stacked), sep="/")
    np.testing.assert_array_equal(rates["blocks/mlp/fc1/kernel"], [[[0.25]], [[1.5]]])
    np.testing.assert_array_equal(rates["blocks/mlp/fc1/bias"], [[0.25], [1.5]])
    assert rates["patch_embed/proj/kernel"] == 0.125
    with pytest.raises(
        UserError, match=r"block_0/.* is frozen and other blocks are not.*scan=False"
    ):
        Groups(freeze=("block_0/.*",)).trained(stacked)
    frozen = Groups(freeze=("block_.*",)).trained(stacked)
    assert not frozen["blocks"]["mlp"]["fc1"]["kernel"] and frozen["head"]["kernel"]


def test_the_tutorials_freeze_is_one_key():
    """All but the head and the pre-logits."""
    trained = flatten_dict(Groups(train_only=("(head|pre_logits)/.*",)).trained(PARAMS), sep="/")
    assert {path for path in trained if trained[path]} == {"pre_logits/kernel", "head/kernel"}


def test_what_is_frozen_is_not_counted_as_trained_and_has_no_moments():
    fields = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    model = create_model("vit", **fields, num_classes=3)
    groups = Groups(train_only=("head/.*",))
    tx = make_tx(lambda step: 0.1, groups=groups)
    layout = state_layout(model, tx, image_shape=(8, 8, 3), mesh=create_mesh(data=1))
    head = 8 * 3 + 3
    assert describe_trained(layout, lora=None, groups=groups).startswith(f"trains {head} of ")
    assert sum(leaf.size for leaf in jax.tree.leaves(layout.opt_state) if leaf.ndim) == 2 * head


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"lr_mults": (("haed/.*", 2.0),), "freeze": ("blok_0/.*",)},
            r"optim.lr_mults: 'haed/.\*' matches no parameter; the nearest are head/kernel.*; "
            r"optim.freeze: 'blok_0/.\*' matches no parameter; the nearest are .*block_0/mlp/fc1",
        ),
        ({"freeze": (".*",)}, "leave no parameter to train"),
        ({"freeze": "head/.*"}, r"optim.freeze='head/.\*' must be patterns, such as"),
        ({"decay_mults": ("head/.*", 2.0)}, "must be pairs, such as"),
        ({"decay_mults": (("head/.*", -2.0),)}, "is -2.0, and must be 0 or more"),
        ({"lr_mults": (("head/.*", 0.0),)}, "must be above 0; optim.freeze stops it"),
        ({"train_only": ("head/(",)}, r"'head/\(' is no regular expression"),
        ({"layer_decay": 1.5}, "optim.layer_decay=1.5 must be above 0 and at most 1"),
    ],
)
def test_tables_that_do_not_fit_are_one_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        Groups(**fields).check(PARAMS)
    assert "\n" not in str(error.value)


def test_a_parameter_that_no_rule_covers_raises():
    with pytest.raises(ValueError, match="no row of PARAMETERS covers head/kernle"):
        decay_mask({"head": {"kernle": jnp.zeros(2), "bias": jnp.zeros(2)}})
    with pytest.raises(ValueError, match=r"no row .* covers new/kernel"):
        matrix_axes({"new": {"kernel": jnp.zeros((2, 2))}})
