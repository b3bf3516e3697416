"""Where arrays lie on the mesh, what a mesh refuses, and that no mesh changes what a step gives."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from kinds import mostly_long

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.models.registry import FAMILIES
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.nn.forms import devices, platform, traced_for
from vitswin_jax.nn.layers import pair
from vitswin_jax.train.keep.checkpoint import Checkpoints
from vitswin_jax.train.optim.ema import Ema
from vitswin_jax.train.optim.groups import path_of
from vitswin_jax.train.optim.lora import Lora
from vitswin_jax.train.optim.optimizers import OPTIMIZERS, make_tx
from vitswin_jax.train.sharding import (
    check_batch_size,
    check_hosts,
    constrain_activations,
    create_mesh,
    host_order,
    rows_of_hosts,
    shard_batch,
    state_shardings,
)
from vitswin_jax.train.state import create_state, state_layout
from vitswin_jax.train.step import StepOptions, make_train_step

VIT = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 8}
SWIN = {
    "img_size": 8,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (1,),
    "num_heads": (2,),
    "window_size": 2,
    "init_std": 0.2,
}
MODELS = {
    "vit": VIT,
    "swin": SWIN | {"depths": (1, 1), "num_heads": (2, 4)},
    "swinv2": SWIN | {"pretrained_window_sizes": (0,)},
    "swin_moe": SWIN
    | {
        "depths": (2,),
        "pretrained_window_sizes": (0,),
        "moe_stages": (0,),
        "num_experts": 2,
    },
}
EVA = {"act": "swiglu", "qkv_bias": "qv", "global_pool": "avg", "rope_type": "axial"}
DESCENDANTS = {  # of ViT: what each has that a plain one has not
    "dinov3": {"rope_type": "centred", "rope_rotate_half": True, "pos_embed": "none",
               "reg_tokens": 2, "qkv_bias": "qv", "init_values": 1.0},
    "eva02": EVA | {"scale_attn_norm": True, "scale_mlp_norm": True, "fc_norm": True},
    "rope": {"rope_type": "mixed", "no_embed_class": True, "init_values": 1.0},
    "perception": {"rope_type": "axial", "rope_grid_indexing": "xy", "pre_norm": True,
                   "patch_bias": False, "global_pool": "map", "pool_include_prefix": True},
    "aimv2": {"norm_layer": "rmsnorm", "act": "swiglu", "qkv_bias": False, "proj_bias": False,
              "mlp_bias": False, "patch_norm": True, "qk_norm": True},
    "aimv2_pool": {"global_pool": "query", "pos_embed": "sincos2d_mae"},
    "relpos": {"pos_embed": "relative_mlp", "pos_embed_at": "shared", "class_token": False,
               "global_pool": "avg", "rel_pos_dim": 8},
    "post_norm": {"norm_at": "after", "global_pool": "avgmax", "final_norm": False},
}  # fmt: skip
DROPS = {"drop_rate": 0.1, "drop_path_rate": 0.2}


def mesh_of(data, fsdp, tensor, slices=1):
    """A mesh of the first so many devices."""
    devices = jax.devices()[: slices * data * fsdp * tensor]
    return create_mesh(slices=slices, data=data, fsdp=fsdp, tensor=tensor, devices=devices)


def make_batches(count=2, rows=16):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {
            "image": rng.normal(size=(rows, 8, 8, 3)).astype(np.float32),
            "label": rng.integers(0, 5, rows).astype(np.int32),
            "mask": np.repeat([1, 0], [rows - 1, 1]).astype(np.float32),
        }


@functools.cache
def run(family, mesh_shape):
    """Two steps; returns losses, logits, and the parameters after them."""
    fields = MODELS[family] if family in MODELS else VIT | {"num_heads": 4} | DESCENDANTS[family]
    model = create_model(family if family in MODELS else "vit", num_classes=5, **fields, **DROPS)
    mesh, tx = mesh_of(*mesh_shape), make_tx(lambda step: 0.1, name="sgd")
    state, shardings = create_state(model, tx, jax.random.key(0), image_shape=(8, 8, 3), mesh=mesh)
    options = StepOptions(aux_weight=0.1, keep_logits=True)
    step = make_train_step(model, tx, options=options, mesh=mesh, shardings=shardings)
    given = []
    for batch in make_batches():
        state, metrics = step(state, shard_batch(batch, mesh), jax.random.key(1))
        given.append((metrics["loss"], metrics["logits"]))
    return jax.device_get((given, state.params))


OTHERS = {
    "vit": [(1, 8, 1), (1, 1, 8), (4, 2, 1), (2, 1, 4), (1, 4, 2)],
    "swin": [(1, 8, 1), (4, 1, 2), (1, 4, 2)],
    "swinv2": [(1, 8, 1), (4, 1, 2), (1, 4, 2)],
    **{family: [(2, 2, 2)] for family in DESCENDANTS if family != "dinov3"},
}
SHORT = [("swin_moe", (1, 2, 2, 2))]
"""`make test` divides a batch over slices, and experts along both axes of a slice."""
MESHES = [
    *((family, (2, 2, 2)) for family in (*MODELS, "dinov3")),
    *((family, (1, 2, 2, 2)) for family in ("vit", "swin_moe")),
    *((family, shape) for family, shapes in OTHERS.items() for shape in shapes),
]


@pytest.mark.parametrize(("family", "shape"), mostly_long(MESHES, SHORT), ids=str)
def test_no_mesh_changes_what_a_step_gives(family, shape):
    """With dropout and stochastic depth; (8, 1, 1), mixing and AdamW are test_steps'."""
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, run(family, (1, 1, 1)), run(family, shape))
    assert all(np.isfinite(loss) for loss, _ in run(family, shape)[0])


def layout_of(model, tx, mesh, **fields):
    """The layout of a state, by the path of each array."""
    shape = (*pair(model.img_size), 3)
    layout = state_layout(model, tx, image_shape=shape, mesh=mesh, **fields)
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(layout)[0]}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_lie_as_their_parameters_do(name):
    """In a stack of blocks too; Adafactor's means over rows and columns are on every device."""
    model = create_model("vit", num_classes=5, **VIT | {"embed_dim": 64, "depth": 2}, scan=True)
    layout = layout_of(model, make_tx(lambda step: 0.1, name=name), create_mesh(fsdp=2, tensor=2))
    ours = [leaf for path, leaf in layout.items() if path.endswith("blocks/mlp/fc1/kernel")]
    whole = [leaf for leaf in ours if leaf.shape == (2, 64, 256)]
    assert len(whole) >= 2
    assert {leaf.sharding.spec for leaf in whole} == {P(None, "fsdp", "tensor")}
    rest = [leaf for leaf in ours if leaf.shape != (2, 64, 256)]
    assert len(rest) == (3 if name == "big_vision_adafactor" else 0)
    assert all(leaf.sharding.is_fully_replicated for leaf in rest)


def test_the_average_and_adapters_have_rules():
    lora = Lora(2, 16.0, r".*attn/qkv/kernel", r"head/.*")
    model = create_model("vit", num_classes=5, **VIT)
    layout = layout_of(
        model, make_tx(lambda step: 0.1), create_mesh(fsdp=8), lora=lora, ema=Ema(0.9)
    )
    assert layout["ema/head/kernel"].sharding.spec == P("fsdp")
    assert layout["params/block_0/attn/qkv/lora_a"].sharding.is_fully_replicated
    assert layout["params/block_0/attn/qkv/kernel"].sharding.spec == P("fsdp", None, "tensor")


@pytest.mark.parametrize("family", mostly_long(FAMILIES, ["vit", "swin"]))
def test_every_family_fits_a_mesh(family):
    """The first variant of each; all but small arrays are divided by fsdp."""
    name = next(name for name, (its, _) in VARIANTS.items() if its == family)
    layout = layout_of(create_model(name), make_tx(lambda step: 0.1), create_mesh(fsdp=8))
    here = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in layout.values())
    assert here < 0.2 * sum(leaf.size for leaf in layout.values())


def test_a_device_has_its_part_of_a_parameter_alone():
    model, tx = create_model("vit", num_classes=5, **VIT), make_tx(lambda step: 0.1)
    state, _ = create_state(
        model, tx, jax.random.key(0), image_shape=(8, 8, 3), mesh=create_mesh(fsdp=4, tensor=2)
    )
    kernel = state.params["block_0"]["attn"]["qkv"]["kernel"]
    assert kernel.shape == (16, 3, 8, 2)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 3, 4, 2)}
    assert state.params["block_0"]["norm1"]["scale"].sharding.is_fully_replicated


def test_an_experts_weights_are_on_its_devices_alone():
    model = create_model("swin_moe", num_classes=5, **MODELS["swin_moe"])
    layout = layout_of(model, make_tx(lambda step: 0.1), create_mesh(tensor=2))
    kernel = layout["params/stage_0/block_1/mlp/fc1_kernel"]
    assert kernel.shape == (2, 8, 32)
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 8, 32)


def test_no_device_gathers_the_batch():
    """Kernels are gathered, for their channels are divided; images and tokens never are."""
    model = create_model("vit", num_classes=5, **VIT | {"embed_dim": 128, "depth": 2})
    mesh, tx = create_mesh(data=1, fsdp=8), make_tx(lambda step: 0.1, name="sgd")
    layout = state_layout(model, tx, image_shape=(8, 8, 3), mesh=mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, layout)
    step = make_train_step(model, tx, options=StepOptions(), mesh=mesh, shardings=shardings)
    batch = next(make_batches())
    program = step.lower(layout, batch, jax.random.key(0)).compile().as_text()
    gathered = re.findall(r"= f32\[([\d,]*)\]\S* all-gather\(", program)
    assert "128,512" in gathered  # of fc1
    assert not [shape for shape in gathered if shape.startswith(("16,5,", "16,8,5,", "16,8,8,"))]


def test_a_checkpoint_is_restored_onto_another_mesh(tmp_path):
    model, tx = create_model("vit", num_classes=5, **VIT), make_tx(lambda step: 0.1)
    shape = {"image_shape": (8, 8, 3)}
    state, _ = create_state(model, tx, jax.random.key(0), mesh=create_mesh(), **shape)
    with Checkpoints(tmp_path, newest=1) as checkpoints:
        checkpoints.save(state.replace(step=jnp.int32(3)), next_batch=3)
    layout = state_layout(model, tx, mesh=create_mesh(fsdp=2, tensor=2), **shape)
    with Checkpoints(tmp_path, newest=1) as checkpoints:
        restored, next_batch = checkpoints.restore_or(lambda: pytest.fail("is new"), layout)
    assert (int(restored.step), next_batch) == (3, 3)
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, restored.opt_state, state.opt_state)
    wanted = jax.tree.map(lambda leaf: leaf.sharding, layout)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == wanted


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1)),
        ({"data": 1}, (1, 1, 1)),
    ],
)
def test_minus_one_is_the_rest(sizes, shape):
    mesh = create_mesh(**sizes)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 3},
        {"data": 4},
        {"data": 16},
        {"fsdp": 3},
        {"tensor": 0},
        {"data": -2},
        {"data": 2, "fsdp": 2, "tensor": 1},
        {"data": -1, "fsdp": -1},
    ],
    ids=str,
)
def test_a_mesh_that_is_not_the_devices_is_one_line(sizes):
    with pytest.raises(
        UserError, match=r"must multiply to the 8 devices; one of them may be -1"
    ) as error:
        create_mesh(**sizes)
    assert "\n" not in str(error.value)


def test_rows_that_two_hosts_would_read_are_refused():
    check_hosts(np.repeat([0, 1], 4).reshape(2, 2, 2), count=2)
    with pytest.raises(
        UserError, match=r"mesh.tensor=4 .* must stay within the 2 devices of a host"
    ):
        check_hosts(np.repeat([0, 1, 2, 3], 2).reshape(1, 2, 4), count=4)
    with pytest.raises(UserError, match=r"has 1 device\(s\), none of some hosts; with 2 hosts"):
        check_hosts(np.zeros((1, 1, 1), int), count=2)


def test_rows_come_back_in_the_order_in_which_hosts_gave_them():
    """A mesh that follows the links puts the hosts' devices in any order, some apart."""
    owners = np.array([2, 2, 0, 0, 1, 2, 1, 0])
    given = {host: [f"{host}:{i}" for i in range((owners == host).sum())] for host in range(3)}
    left = {host: iter(rows) for host, rows in given.items()}
    sharded = np.array([next(left[host]) for host in owners])  # a host's rows stay in order
    assert sharded[host_order(owners)].tolist() == given[0] + given[1] + given[2]
    assert rows_of_hosts(create_mesh(fsdp=2, tensor=2), 8) == [jax.process_index()] * 8


def test_a_batch_is_divided_over_data_and_fsdp():
    mesh = create_mesh(fsdp=2, tensor=2)
    check_batch_size("data.batch_size", 12, mesh)
    with pytest.raises(
        UserError,
        match=r"batch_size=6 must be a multiple of 4, which is mesh.data x mesh.fsdp; 8 is",
    ):
        check_batch_size("data.batch_size", 6, mesh)
    images = shard_batch({"image": np.zeros((8, 2))}, mesh)["image"]
    assert {shard.data.shape for shard in images.addressable_shards} == {(2, 2)}


def test_what_the_mesh_does_not_divide_is_named_with_what_would_do():
    """Swin-T: 3 heads in its first stage, and 96 channels."""
    with pytest.raises(UserError) as error:
        layout_of(create_model("swin_tiny_patch4_window7_224"), make_tx(lambda step: 0.1),
                  create_mesh(tensor=2))  # fmt: skip
    assert str(error.value) == (
        "mesh.tensor=2 does not divide axis 0 of stage_0/block_0/attn/proj/kernel (3, 32, 96) (and "
        "7 more); on 8 devices it can be 1."
    )


def test_paths_that_no_rule_covers_are_all_named():
    state = {
        "params": {"head": {"kernle": jnp.zeros(2), "bais": jnp.zeros(2)}},
        "other": jnp.zeros(2),
    }
    with pytest.raises(ValueError, match="covers other, params/head/bais, params/head/kernle"):
        state_shardings(create_mesh(), state)


def test_a_step_is_traced_for_the_platform_of_its_mesh():
    """Programs for a TPU are compiled on a host whose own devices are CPUs."""
    here = create_mesh(data=1, devices=jax.devices()[:1])
    seen = constrain_activations(here)(platform)
    with traced_for("tpu"):
        assert (platform(), seen()) == ("tpu", jax.default_backend())


@pytest.mark.parametrize("size", [1, 8])
def test_a_step_is_traced_for_the_devices_of_its_mesh(size):
    mesh = jax.make_mesh((size,), ("data",), devices=jax.devices()[:size])
    assert (devices(), constrain_activations(mesh)(devices)()) == (1, size)


def test_one_device_is_one():
    with pytest.raises(UserError, match=r"must multiply to the 1 device; one of them may be -1"):
        create_mesh(data=3, devices=jax.devices()[:1])
