"""Rules: names and layouts both ways, and every mistake of a table or a file in one line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.tensors import Tensor
from vitswin_jax.weights.sources import detect, layouts, rules
from vitswin_jax.weights.sources.rules import Rule, apply_rules, fill, match, write_rules

RULES = (
    Rule("stem.weight", "stem/kernel", layouts.conv),
    Rule("layers.{i}.{n:norm[12]}.weight", "block_{i}/{n}/scale"),
    Rule("layers.{i+1}.down.weight", "block_{i}/down/kernel", layouts.dense),
    Rule(("layers.{i}.q.weight", "layers.{i}.k.weight", "layers.{i}.v.weight"),
         "block_{i}/qkv/kernel", layouts.dense),
    Rule("layers.{i}.proj.weight", "block_{i}/proj/kernel", layouts.dense_out),
    Rule("{b:index|mask}", None),
)  # fmt: skip
SHAPES = {
    "stem/kernel": (2, 3, 4, 5),
    "block_0/norm1/scale": (5,),
    "block_0/down/kernel": (5, 7),
    "block_0/qkv/kernel": (6, 3, 2, 3),
    "block_0/proj/kernel": (2, 3, 6),
}


def theirs():
    rng = np.random.default_rng(0)
    shapes = {
        "stem.weight": (5, 4, 2, 3),
        "layers.0.norm1.weight": (5,),
        "layers.1.down.weight": (7, 5),
        "layers.0.q.weight": (6, 6),
        "layers.0.k.weight": (6, 6),
        "layers.0.v.weight": (6, 6),
        "layers.0.proj.weight": (6, 6),
        "index": (9,),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def tensors(arrays):
    return {name: Tensor.of(array) for name, array in arrays.items()}


def test_layouts_compute_what_pytorch_would():
    arrays = theirs()
    ours, dropped = apply_rules(tensors(arrays), RULES, SHAPES, origin="file")
    ours = {name: tensor.read() for name, tensor in ours.items()}
    assert {name: array.shape for name, array in ours.items()} == SHAPES
    assert dropped == ["index"]
    x = np.random.default_rng(1).normal(size=6)
    for part, name in enumerate("qkv"):
        want = arrays[f"layers.0.{name}.weight"] @ x  # (heads, head_dim) side by side
        got = np.einsum("c,chd->hd", x, ours["block_0/qkv/kernel"][:, part])
        np.testing.assert_allclose(got.reshape(-1), want, atol=1e-6)
    got = np.einsum("hd,hdc->c", x.reshape(2, 3), ours["block_0/proj/kernel"])
    np.testing.assert_allclose(got, arrays["layers.0.proj.weight"] @ x, atol=1e-6)
    assert ours["stem/kernel"][1, 2, 3, 4] == arrays["stem.weight"][4, 3, 1, 2]


def test_writing_is_reading_backwards():
    arrays = theirs()
    ours, _ = apply_rules(tensors(arrays), RULES, SHAPES, origin="file")
    back = write_rules({n: t.read() for n, t in ours.items()}, RULES, origin="file")
    del arrays["index"]
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype


def test_everything_wrong_is_in_one_line():
    arrays = theirs()
    arrays["unknown"] = arrays.pop("stem.weight")
    arrays["layers.0.norm1.weight"] = np.zeros(4, np.float32)
    arrays["layers.0.norm2.weight"] = np.zeros(5, np.float32)
    del arrays["layers.0.v.weight"]
    with pytest.raises(UserError) as error:
        apply_rules(tensors(arrays), RULES, SHAPES, origin="a.pth")
    message = str(error.value)
    for part in (
        "a.pth: ",
        "unknown is unknown",
        "stem.weight is missing",
        "layers.0.norm1.weight has shape (4,), the model's (5,)",
        "layers.0.norm2.weight has no place in the model",
        "layers.0.q.weight is there without layers.0.v.weight",
    ):
        assert part in message
    assert "\n" not in message


def test_two_names_for_one_thing_are_refused():
    table = (Rule("a", "x"), Rule("b", "x"))
    arrays = tensors({"a": np.zeros(2), "b": np.ones(2)})
    with pytest.raises(UserError, match="b and a are one thing twice"):
        apply_rules(arrays, table, {"x": (2,)}, origin="file")


def test_what_has_no_name_over_there_is_listed():
    with pytest.raises(UserError, match=r"no place for a/bias, b/bias"):
        write_rules({"b/bias": np.zeros(1), "a/bias": np.zeros(1)}, RULES, origin="file")


@given(st.integers(0, 10**6), st.sampled_from(["norm1", "norm2"]))
def test_templates_match_what_they_fill(i, n):
    values = {"i": str(i), "n": n}
    for template in ("a.{i}.{n:norm[12]}.{i}", "{n:norm[12]}/{i+3}x"):
        assert match(template, fill(template, values)) == values
    assert match("a{i+3}", "a2") is None
    assert match("{i}.{i}", "1.2") is None
    assert match("a.b", "axb") is None


@pytest.mark.parametrize("source", detect.SOURCES, ids=lambda source: f"{source.name}")
def test_tables_are_the_same_both_ways(source):
    """Of every rule: a name of theirs leads to the name of ours that leads back."""
    samples = {"scale|bias": "bias", "kernel|bias": "kernel"}
    for rule in source.rules:
        if rule.ours is None:
            continue
        fields = {name: kind for name, _, kind in rules._FIELD.findall(rule.ours)}
        values = {
            name: samples.get(kind) or {"": "3"}.get(kind) or _sample(kind)
            for name, kind in fields.items()
        }
        ours = fill(rule.ours, values)
        names = [fill(part, values) for part in rule.parts]
        tensors = {name: Tensor((), np.dtype("f4"), lambda: None) for name in names}
        for name in names:
            assert rules._find(name, source.rules, tensors)[1:] == (ours, names)


def _sample(kind):
    """Returns a text that one of our expressions matches."""
    first = kind.replace("(cls|dist|reg)", "cls").split("|")[0]
    first = first.replace("([qk]_)?", "q_").replace("[12]", "1")
    return first.replace("[qv]", "q").replace("[qkv]", "q")
