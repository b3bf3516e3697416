"""Models of Hugging Face's transformers, drawn at random and run beside ours: the same numbers.

Their file is read, and what the file does not show is given as a field. The original runs in
float64 on the same float32 parameters, so that what is measured is our rounding. Its gradients
become a file of its own, which the same rules read, for reading only moves numbers.
"""

import copy
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from applied import apply
from flax.traverse_util import flatten_dict

import vitswin_jax

torch = pytest.importorskip("torch")
sys.modules.setdefault("torchvision", None)  # not needed, and broken where built for another torch
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what their imports find deprecated is not ours
    transformers = pytest.importorskip("transformers", minversion="4.48")

torch.set_num_threads(1)  # more wait for one another, on models this small
DRAWS = 3
TOLERANCE = 1e-5  # of the root mean square: float32's epsilon is 6e-8, and errors add up


def of(name, *values):
    """One aspect of a config: the values that one of its fields may have."""
    return [{name: value} for value in values]


WIDTHS = [
    {"hidden_size": 24, "num_attention_heads": 3},
    {"hidden_size": 20, "num_attention_heads": 5},
    {"hidden_size": 36, "num_attention_heads": 1},
]
GRIDS = [
    {"image_size": 12, "patch_size": 4},
    {"image_size": (8, 20), "patch_size": 4},
    {"image_size": (15, 9), "patch_size": 3},
]
PLAIN = (
    WIDTHS,
    GRIDS,
    of("num_hidden_layers", 1, 2),
    of("qkv_bias", True, False),
    of("num_channels", 3, 1, 4),
    of("num_labels", 2, 7),
    of("hidden_act", "gelu", "gelu_pytorch_tanh", "quick_gelu"),
    of("layer_norm_eps", 1e-12, 1e-6, 1e-3),
)
SQUARE = [{"image_size": 12, "patch_size": 4}, {"image_size": 15, "patch_size": 3}]
DINOV2 = (WIDTHS, SQUARE, *PLAIN[2:], of("mlp_ratio", 1, 4), of("layerscale_value", 1.0))
STAGES = [
    {"embed_dim": 24, "depths": [2, 2], "num_heads": [1, 3]},
    {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4]},
    {"embed_dim": 12, "depths": [1, 1, 2], "num_heads": [1, 2, 4]},
]
SWIN = (
    STAGES,
    of("qkv_bias", True, False),
    of("num_channels", 3, 1),
    of("num_labels", 2, 7),
    of("mlp_ratio", 1.5, 4.0),
    of("hidden_act", "gelu", "gelu_new"),
)
MAPS = [  # the window divides every map, pads some, is one of them
    {"image_size": 32, "patch_size": 2, "window_size": 4},
    {"image_size": (36, 60), "patch_size": 3, "window_size": 2},
    {"image_size": 24, "patch_size": 2, "window_size": 6},
]
ARCHITECTURES = {
    "ViT": ("ViTForImageClassification", (*PLAIN, of("intermediate_size", 20, 50))),
    "DeiT": (
        "DeiTForImageClassificationWithTeacher",
        (*PLAIN, of("intermediate_size", 20, 50)),
    ),
    "Dinov2": ("Dinov2ForImageClassification", DINOV2),
    "Dinov2WithRegisters": (
        "Dinov2WithRegistersForImageClassification",
        (*DINOV2, of("num_register_tokens", 1, 4)),
    ),
    "Swin": ("SwinForImageClassification", (*SWIN, MAPS)),
    "Swinv2": (
        "Swinv2ForImageClassification",
        (*SWIN, MAPS, of("pretrained_window_sizes", [0, 0, 0], [6, 5, 0])),
    ),
}
CASES = [(name, draw) for name in ARCHITECTURES for draw in range(DRAWS)]
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def draw_config(architecture, draw):
    """Returns a config; over the draws each value of each aspect comes up, in random company."""
    sizes = {}
    rng = np.random.default_rng(sum(map(ord, architecture)))
    for aspect in ARCHITECTURES[architecture][1]:
        order = rng.permutation(len(aspect))
        sizes |= aspect[order[draw % len(aspect)]]
    if "pretrained_window_sizes" in sizes:
        stages = len(sizes["depths"])
        sizes["pretrained_window_sizes"] = sizes["pretrained_window_sizes"][:stages]
    return getattr(transformers, f"{architecture}Config")(**sizes)


def create_theirs(architecture, config):
    """Returns their model with random numbers for parameters, none of which is zero."""
    model = getattr(transformers, ARCHITECTURES[architecture][0])(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(parity.make_array(name, parameter.shape)))
    return model


def unseen_fields(config):
    """What a file does not show of a model that has not a published one's sizes."""
    fields = {"act": ACTIVATIONS.get(config.hidden_act, config.hidden_act)}
    fields["img_size"] = config.image_size
    if not hasattr(config, "depths"):
        return fields | {"num_heads": config.num_attention_heads, "norm_eps": config.layer_norm_eps}
    if hasattr(config, "pretrained_window_sizes"):
        fields["window_size"] = config.window_size
        fields["pretrained_window_sizes"] = tuple(config.pretrained_window_sizes)
    return fields


def load(model, folder):
    model.save_pretrained(folder)  # under the names of the published files, whatever it has itself
    return vitswin_jax.load_pretrained(folder, **unseen_fields(model.config))


def their_logits(model, images):
    with torch.no_grad():
        return model.double()(torch.from_numpy(np.moveaxis(images, -1, 1)).double()).logits.numpy()


def our_outputs(model, variables, images, **options):
    with jax.default_matmul_precision("highest"):
        return apply(model, variables, images, **options)


def draw_batch(config, seed=0):
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((2, height, width, config.num_channels), np.float32)
    return images, rng.integers(config.num_labels, size=2)


def their_logits_and_gradients(model, images, labels, dtype):
    """Returns logits, and the cross-entropy's gradients by the images and as a model of theirs."""
    model = copy.deepcopy(model).to(dtype)
    images = torch.from_numpy(np.moveaxis(images, -1, 1)).to(dtype).requires_grad_()
    logits = model(images).logits
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            missing = parameter.grad is None  # a mask token's
            parameter.copy_(torch.zeros_like(parameter) if missing else parameter.grad)
        if hasattr(model, "dinov2_with_registers"):
            # Read, the class token has its position added; our gradient is by the sum of the two.
            model.dinov2_with_registers.embeddings.position_embeddings[:, 0] = 0
    return logits.detach().numpy(), np.moveaxis(images.grad.numpy(), 1, -1), model


def our_logits_and_gradients(model, variables, images, labels):
    def loss(variables, images):
        logits = apply(model, variables, images)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -picked.mean(), logits

    with jax.default_matmul_precision("highest"):
        run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        (by_variables, by_images), logits = run(variables, images)
    return logits, by_images, by_variables


def relative_errors(got, want):
    """Largest differences of named arrays, by the root mean square of what is wanted."""
    return {
        name: np.abs(np.asarray(got[name], np.float64) - array).max()
        / (np.sqrt(np.mean(np.square(array))) + 1e-12)
        for name, array in want.items()
    }


@pytest.mark.parametrize(("architecture", "draw"), CASES)
def test_forward_and_gradients_are_transformers(architecture, draw, tmp_path):
    config = draw_config(architecture, draw)
    theirs = create_theirs(architecture, config)
    model, variables = load(theirs, tmp_path / "weights")
    images, labels = draw_batch(config)
    logits, by_images, gradients = our_logits_and_gradients(model, variables, images, labels)
    gradients = flatten_dict(gradients["params"], sep="/") | {"images": by_images}
    want_logits, *want = their_logits_and_gradients(theirs, images, labels, torch.float64)
    _, *rounded = their_logits_and_gradients(theirs, images, labels, torch.float32)
    assert relative_errors({"": logits}, {"": want_logits})[""] <= TOLERANCE

    want, rounded = (
        flatten_dict(load(parameters, tmp_path / str(i))[1]["params"], sep="/") | {"images": images}
        for i, (images, parameters) in enumerate((want, rounded))
    )
    theirs = max(relative_errors(rounded, want).values())
    ours = relative_errors(gradients, want)
    assert ours.keys() == gradients.keys()
    # Norms of few channels are steep: float32 then loses digits, theirs as ours.
    allowed = max(TOLERANCE, 4 * theirs)
    assert {name: error for name, error in ours.items() if error > allowed} == {}, allowed


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_reads_what_we_write(architecture, tmp_path):
    config = draw_config(architecture, 0)
    model, variables = load(create_theirs(architecture, config), tmp_path / "theirs")
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: leaf + np.float32(0.1) * rng.standard_normal(leaf.shape, np.float32), variables
    )
    config.save_pretrained(tmp_path / "ours")
    vitswin_jax.save_pretrained(
        tmp_path / "ours" / "model.safetensors", model, variables, format="huggingface"
    )
    theirs, loading = getattr(transformers, ARCHITECTURES[architecture][0]).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert {kind: list(keys) for kind, keys in loading.items() if keys} == {}
    images, _ = draw_batch(config)
    got, want = our_outputs(model, variables, images), their_logits(theirs, images)
    assert np.abs(got - want).max() <= TOLERANCE * np.std(want)


def test_swin_v2_masks_twice(tmp_path):
    """Cosines of one channel are 1 or -1, and scaled by 100: what is masked once is still seen."""
    config = transformers.Swinv2Config(
        embed_dim=8,
        depths=[2],
        num_heads=[8],
        window_size=4,
        image_size=16,
        patch_size=2,
        pretrained_window_sizes=[0],
    )
    theirs = create_theirs("Swinv2", config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("logit_scale"):
                parameter.fill_(5.0)
    model, variables = load(theirs, tmp_path)
    images, _ = draw_batch(config)
    want = their_logits(theirs, images)
    once, twice = (
        np.abs(our_outputs(model.clone(mask_value=mask), variables, images) - want).max()
        for mask in (-100.0, -200.0)
    )
    assert model.mask_value == -200
    assert twice <= 1e-4 * np.std(want)
    assert once > 1e-2 * np.std(want)


def tower(name, **sizes):
    config = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
              "intermediate_size": 40, "image_size": 12, "patch_size": 4}  # fmt: skip
    return getattr(transformers, f"{name}Config")(**config | sizes)


TOWERS = {  # the class that has the image tower, its config, and what its file does not show
    "CLIP": ("CLIPVisionModel", "CLIPVision", {"hidden_act": "quick_gelu"}, {"act": "quick_gelu"}),
    "OpenCLIP": ("CLIPVisionModel", "CLIPVision", {"hidden_act": "gelu"}, {"act": "gelu"}),
    "SigLIP": ("SiglipVisionModel", "SiglipVision", {}, {}),
    "ViT-MAE": ("ViTMAEModel", "ViTMAE", {"mask_ratio": 0.0}, {}),
}


@pytest.mark.parametrize("case", TOWERS)
def test_image_towers_are_transformers(case, tmp_path):
    """What a tower gives for an image, and its gradient by the image."""
    kind, config, sizes, fields = TOWERS[case]
    config = tower(config, **sizes)
    theirs = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.from_numpy(parity.make_array(name, parameter.shape)))
    theirs.save_pretrained(tmp_path)
    model, variables = vitswin_jax.load_pretrained(tmp_path, num_heads=3, **fields)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 12, 12, 3), np.float32)
    weights = rng.standard_normal((2, 24), np.float32)

    theirs = theirs.double()
    pixels = torch.from_numpy(np.moveaxis(images, -1, 1)).double().requires_grad_()
    output = theirs(pixels)
    pooled = output.last_hidden_state[:, 0] if case == "ViT-MAE" else output.pooler_output
    (pooled * torch.from_numpy(weights)).sum().backward()

    def weighted(images):
        features = apply(model, variables, images, method="features")
        return (features * weights).sum(), features

    with jax.default_matmul_precision("highest"):
        by_images, features = jax.jit(jax.grad(weighted, has_aux=True))(jnp.asarray(images))
    want = {
        "features": pooled.detach().numpy(),
        "images": np.moveaxis(pixels.grad.numpy(), 1, -1),
    }
    errors = relative_errors({"features": features, "images": by_images}, want)
    assert {name: error for name, error in errors.items() if error > 2 * TOLERANCE} == {}
