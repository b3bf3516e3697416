"""Each family goes through each format that can hold it, and comes back the same.

The pairs are the code's own table: a source that can be written is a case here by being there.
"""

import functools

import numpy as np
import parity
import pytest
from drawn import draw
from flax.traverse_util import flatten_dict

import vitswin_jax
from vitswin_jax.models.registry import FAMILIES
from vitswin_jax.weights.formats.read import read_tensors
from vitswin_jax.weights.metadata import model_fields
from vitswin_jax.weights.shapes import parameter_shapes, window_buffers
from vitswin_jax.weights.sources.detect import SOURCES
from vitswin_jax.weights.sources.source import SOME
from vitswin_jax.weights.sources.source import UNSEEN as NO_TENSOR
from vitswin_jax.weights.write import as_theirs, choose_target

SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 12, "depths": (2, 2), "num_heads": (1, 3),
        "window_size": 8, "num_classes": 5}  # fmt: skip
SMALL = {
    "vit": {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2,
            "num_classes": 5},
    "swin": SWIN,
    "swinv2": SWIN | {"pretrained_window_sizes": (3, 0)},
    "swinv2_cr": SWIN | {"extra_norm_stage": True},
    "swin_mlp": SWIN,
    "swin_moe": SWIN | {"moe_stages": (1,), "num_experts": 3, "pretrained_window_sizes": (3, 0)},
}  # fmt: skip
SUFFIX = {"google": "npz", "microsoft": "pth", "torchvision": "pth", "native": "safetensors"}
# The others have two.
UNSEEN = {  # of a model that has not a published one's sizes, and the choices that have no numbers
    "vit": ("num_heads", "act", "global_pool", "pos_embed", "img_size", "final_norm", *NO_TENSOR),
    "swin": (),
    "swin_mlp": (),
    "swin_moe": (),
    "swinv2": ("window_size", "pretrained_window_sizes", "img_size"),
    "swinv2_cr": ("window_size", "img_size"),
}
HELD = [
    pytest.param(
        source,
        holds,
        id=f"{source.name}-{source.family}-{i}-{j}",
        marks=[pytest.mark.long] * (j > 0),
    )
    for i, source in enumerate(SOURCES)
    for j, holds in enumerate(source.holds)
]
"""What each source holds; `make test` tries the first of each."""


def a_value(field, allowed, default):
    """The default, or else the first that is allowed."""
    if default in allowed:
        return default
    if allowed[0] != SOME:
        return allowed[0]
    return {"init_values": 1e-5, "resnet_layers": (1,)}.get(field, 3)


def round_trip(path, model, format, **unseen):
    variables = draw(model)
    want = flatten_dict(variables["params"], sep="/")
    if getattr(model, "pos_embed", None) == "relative":  # BEiT's keys have no bias
        for name in (name for name in want if name.endswith("qkv/bias")):
            want[name][1] = 0
    vitswin_jax.save_pretrained(path, model, variables, format=format)
    loaded, variables = vitswin_jax.load_pretrained(path, **unseen)
    got = flatten_dict(variables["params"], sep="/")
    assert loaded == model
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize(("source", "holds"), HELD)
def test_a_format_gives_back_what_it_holds(source, holds, tmp_path):
    fields = SMALL[source.family] | dict(source.numerics)
    plain = vitswin_jax.create_model(source.family, **fields)
    fields |= {
        field: a_value(field, allowed, getattr(plain, field)) for field, allowed in holds.items()
    }
    if source.name == "Hugging Face (CLIP)":  # a head of ours has a bias, its projection none
        fields["num_classes"] = 0
    if fields.get("resnet_layers") == ():  # a stem alone divides by four
        fields["img_size"] = 64
    if source.name == "timm" and fields.get("pre_norm"):
        fields["norm_eps"] = 1e-5
    model = vitswin_jax.create_model(source.family, **fields)
    assert choose_target(source.format, source.family, fields, origin="").format == source.format
    unseen = {field: getattr(model, field) for field in UNSEEN[source.family]}
    path = tmp_path / f"a.{SUFFIX.get(source.format, 'safetensors')}"
    round_trip(path, model, source.format, **unseen)


@pytest.mark.parametrize("family", FAMILIES)
def test_our_own_format_holds_every_family(family, tmp_path):
    round_trip(
        tmp_path / "a.safetensors",
        vitswin_jax.create_model(family, **SMALL[family]),
        "native",
    )


LAYOUTS = parity.read_cases("layouts")


@pytest.mark.parametrize("case", LAYOUTS)
def test_names_and_shapes_are_the_originals(case):
    """Of every family in every format: what its own code has in a file, neither more nor less."""
    format, family, fields, entries = (
        LAYOUTS[case][key] for key in ("format", "family", "fields", "entries")
    )
    model = vitswin_jax.create_model(family, **fields)
    shapes = parameter_shapes(model)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    source = choose_target(format, family, model_fields(model), origin=case)
    theirs = as_theirs(source, tensors, functools.partial(window_buffers, model), origin=case)
    found = {source.prefix + name: list(array.shape) for name, array in theirs.items()}
    assert found == entries


ORIGINALS = ("microsoft__swin_mlp", "microsoft__swin_moe", "microsoft__swin_moe_cosine")


@pytest.mark.parametrize("case", ORIGINALS)
def test_a_file_is_written_back_under_the_names_it_had(case, tmp_path):
    case = parity.CASES[case]
    path = parity.write(case, tmp_path)
    model, variables = vitswin_jax.load_pretrained(path, case["model"], **case["overrides"])
    again = vitswin_jax.save_pretrained(
        tmp_path / "again.pth", model, variables, format="microsoft"
    )
    tensors = read_tensors(again).tensors
    found = {name.removeprefix("model."): list(tensors[name].shape) for name in tensors}
    assert found == {name: entry["shape"] for name, entry in case["entries"].items()}


def test_every_target_is_compared_with_its_original():
    written = {(source.format, source.family) for source in SOURCES if source.holds}
    compared = {(case["format"], case["family"]) for case in LAYOUTS.values()}
    compared |= {("torchvision", family) for family in ("vit", "swin", "swinv2")}  # test_zoo.py
    compared |= {("timm", "swinv2_cr")}  # there too
    back = {(name.partition("__")[0], parity.CASES[name]["model"]) for name in ORIGINALS}
    assert written == compared | back | {("microsoft", "vit")}  # SimMIM's, in test_masked.py
