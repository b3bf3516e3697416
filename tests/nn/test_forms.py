"""All forms of a formula have its value and its gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import mostly_long

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.nn.forms import PLATFORMS, Forms, devices, forms, platform, traced_for
from vitswin_jax.nn.layers import JointLinear, Linear, PatchEmbed

CHOICES = {
    "products": ("autodiff", "keep_input"),
    "linear": ("matrix", "einsum"),
    "norm": ("keep_standard", "keep_statistics"),
    "patches": ("product", "convolution"),
    "qkv": ("joint", "apart"),
    "parts": ("loop", "unrolled"),
    "tokamax": ("mosaic", "triton"),
}
PLAIN = PLATFORMS["cpu"]
OTHERS = [
    dataclasses.replace(PLAIN, **{name: value})
    for name, values in CHOICES.items()
    for value in values
    if value != getattr(PLAIN, name)
]


def test_every_field_is_tried_with_every_choice():
    assert {field.name for field in dataclasses.fields(Forms)} == set(CHOICES)
    for chosen in PLATFORMS.values():
        assert all(value in CHOICES[name] for name, value in dataclasses.asdict(chosen).items())


@pytest.mark.parametrize("family", mostly_long(["vit", "swin"], ["swin"]))
def test_every_form_has_the_same_numbers_and_gradients(random_params, family):
    sizes = {
        "vit": {
            "img_size": 10,
            "patch_size": 4,
            "depth": 2,
            "num_heads": 2,
            "crop_to_patches": True,
        },
        "swin": {
            "img_size": 16,
            "patch_size": 2,
            "depths": (2,),
            "num_heads": (2,),
            "window_size": 4,
        },
    }
    model = create_model(family, embed_dim=8, num_classes=3, **sizes[family])
    side = sizes[family]["img_size"]
    images = jax.random.normal(jax.random.key(0), (2, side, side, 3))
    params = random_params(model, images)

    def lower(forms):
        def loss(params, images):
            out = model.apply({"params": params}, images, train=True)
            return (out**2).sum(), out

        with traced_for(forms=forms):
            step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
            return step.lower(params, images)

    programs = {program.as_text(): program for program in map(lower, [PLAIN, *OTHERS])}
    # Kernels alone read two of the fields, and gradient accumulation one.
    assert len(programs) == 1 + len(OTHERS) - 3
    outputs = [jax.tree.leaves(each.compile()(params, images)) for each in programs.values()]
    for got in outputs[1:]:
        for one, other in zip(got, outputs[0], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()) + 1e-7)


def test_a_joint_layer_has_the_parameters_of_a_linear_and_its_outputs():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    joint, linear = JointLinear((8, 3, 2, 4)), Linear((8, 3, 2, 4), "...nc,cthd->...nthd")
    variables = linear.init(jax.random.key(1), x, train=False)
    got = joint.init(jax.random.key(1), x, train=False)
    jax.tree.map(np.testing.assert_array_equal, got, variables)
    variables = jax.tree.map(lambda p: p + 0.5, variables)
    want = linear.apply(variables, x, train=False)
    for i, out in enumerate(joint.apply(variables, x, train=False)):
        np.testing.assert_allclose(out, want[:, :, i], atol=1e-5)


def test_patches_by_product_are_the_convolution_and_leave_out_the_same_pixels():
    images = jax.random.normal(jax.random.key(0), (2, 9, 14, 3))
    embed = PatchEmbed((4, 3), 5)
    variables = jax.tree.map(lambda p: p + 0.1, embed.init(jax.random.key(1), images))
    found = {}
    for form in CHOICES["patches"]:
        with traced_for(forms=Forms(patches=form)):
            found[form] = embed.apply(variables, images)
    assert found["product"].shape == (2, 2, 4, 5)
    np.testing.assert_allclose(found["product"], found["convolution"], atol=1e-5)


def test_a_context_names_the_platform_and_ends():
    assert platform() == jax.default_backend() and forms() == PLATFORMS[platform()]
    with traced_for("tpu"):
        assert platform() == "tpu" and forms() == PLATFORMS["tpu"]
        with traced_for(forms=Forms(qkv="apart")):
            assert platform() == "tpu" and forms() == Forms(qkv="apart")
        with traced_for(devices=8):
            assert platform() == "tpu" and devices() == 8
        assert devices() == 1
    assert platform() == jax.default_backend()
    with pytest.raises(UserError, match="platform='cuda' must be one of cpu, gpu, tpu"):
        traced_for("cuda").__enter__()
