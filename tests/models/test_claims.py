"""Fields of a file are held against its tensors before a model is made of them."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import safetensors.numpy
from kinds import mostly_long

import vitswin_jax
from vitswin_jax.core.types import UserError
from vitswin_jax.models.claims import claiming
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights.formats.native import KEY
from vitswin_jax.weights.formats.read import read_tensors
from vitswin_jax.weights.metadata import model_fields


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Native files of a small ViT and a small Swin, by family."""
    folder, made = tmp_path_factory.mktemp("files"), {}
    sizes = {
        "vit": {"depth": 2, "num_heads": 2, "patch_size": 8},
        "swinv2": {
            "depths": (2, 2),
            "num_heads": (2, 4),
            "window_size": 4,
            "pretrained_window_sizes": (0, 0),
        },
    }
    for family, fields in sizes.items():
        model = vitswin_jax.create_model(family, img_size=32, embed_dim=16, num_classes=3, **fields)
        variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        made[family] = vitswin_jax.save_pretrained(folder / family, model, variables)
    return made


def claim(source, target, **fields):
    """Writes a file's tensors with other fields, and no checksum."""
    contents = read_tensors(source)
    arrays = {name: tensor.read() for name, tensor in contents.tensors.items()}
    metadata = dict(contents.metadata)
    metadata["fields"] = metadata["fields"] | fields
    text = json.dumps({"metadata": metadata})
    safetensors.numpy.save_file(arrays, target, metadata={KEY: text})
    return str(target)


CLAIMS = {
    "vit": [
        {"depth": 10**9}, {"img_size": 100_000}, {"img_size": [100_000, 8]}, {"embed_dim": 10**9},
        {"img_size": 16_384, "patch_size": 1, "pos_embed": "sincos2d"},
        {"img_size": 4096, "pos_embed": "relative"},
        {"img_size": 4096, "pos_embed": "relative_mlp"}, {"num_classes": 10**12},
        {"num_heads": 10**9},
        {"patch_size": 10**6, "img_size": 10**6}, {"in_chans": 10**9}, {"reg_tokens": 10**9},
        {"resnet_layers": [10**6] * 3}, {"mlp_ratio": 1e300}, {"mlp_ratio": -1e300},
        {"depth": -1}, {"depth": "12"}, {"depth": None}, {"depth": 2.0}, {"depth": [2]},
        {"img_size": "224"}, {"img_size": []}, {"img_size": {}}, {"img_size": [32, 32, 32]},
        {"patch_size": 0}, {"num_heads": 0}, {"act": 3}, {"act": []}, {"act": "x" * 10**6},
        {"norm_eps": "small"}, {"dtype": "float1"}, {"dtype": {}}, {"global_pool": []},
        {"qkv_bias": "no"}, {"x" * 300: 1}, {"parent": 1}, {"name": "x"}, {"pos_embed": {}},
        {"remat": "?"}, {"pre_logits": 10**10}, {"init_values": "a"}, {"drop_path_rate": "a"},
    ],
    "swinv2": [
        {"depths": [10**9, 2]}, {"depths": [1] * 10**4, "num_heads": [1] * 10**4},
        {"window_size": 10**6}, {"window_size": [16_000, 16_000]}, {"window_size": "4"},
        {"window_size": []}, {"img_size": 16_384}, {"pretrained_window_sizes": [10**6, 1]},
        {"depths": 2}, {"depths": None}, {"depths": []}, {"num_heads": 4}, {"num_heads": [0, 0]},
        {"window_size": 0}, {"window_size": None}, {"depths": [[2], [2]]}, {"depths": ["2", "2"]},
    ],
}  # fmt: skip

LIMITED = """
import resource, sys, time
import vitswin_jax
from pathlib import Path
from vitswin_jax.core.types import UserError
vitswin_jax.load_pretrained(sys.argv[1])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 30), -1))
for name in sys.argv[2:]:
    start = time.monotonic()
    try:
        vitswin_jax.load_pretrained(name)
        print(Path(name).name, "is loaded")
    except UserError as error:
        print(Path(name).name, time.monotonic() - start < 20, str(error).removeprefix(name))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "family",
    mostly_long(CLAIMS, ["vit"]),
)
def test_claims_take_neither_time_nor_memory(tmp_path, files, family):
    paths = [
        claim(files[family], tmp_path / f"{i:03}", **fields)
        for i, fields in enumerate(CLAIMS[family])
    ]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(files[family]), *paths],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert [line for line in lines if " True : " not in line] == []
    assert len(lines) == len(paths)
    assert max(map(len, lines)) < 1100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 3}, "depth=3, and it has 2 tensors"),
        ({"depths": (1, 1, 1)}, r"depths=\(1, 1, 1\), and it has 2 tensors"),
        ({"embed_dim": 20_000}, "embed_dim=20000 is larger than 17000"),
        ({"window_size": 90}, "window_size=90 has more than"),
        ({"img_size": 4096, "embed_dim": 96}, "first map of more than"),
    ],
)
def test_what_is_claimed_is_named(fields, message):
    with pytest.raises(UserError, match=message), claiming("a", fields, [(17_000, 1), (3,)]):
        pass


def test_published_sizes_are_no_claims():
    shapes = [(1,)] * 500
    for fields in (
        {"img_size": 2048, "patch_size": 16, "embed_dim": 1024, "depth": 24},
        {"img_size": 1536, "patch_size": 4, "embed_dim": 192, "window_size": 32},
        {"img_size": (224, 112), "pos_embed": "relative", "patch_size": 16},
        {"window_size": ((7, 7), (14, 7)), "depths": (2, 2, 18, 2), "num_classes": 0},
        {"resnet_layers": None, "img_size": 224},
    ):
        with claiming("a", fields, shapes):
            pass


def test_an_internal_exceptions_text_is_left_out():
    with pytest.raises(UserError, match=r"a: its sizes cannot be a model: depth=1\.") as error, \
            claiming("a", {"depth": 1}, [(1,)]):  # fmt: skip
        raise KeyError("inner")
    assert "inner" not in str(error.value)


@pytest.mark.parametrize("name", vitswin_jax.model_names())
def test_every_variant_is_believed(name):
    """At twice its image size too: a hybrid's patches are of its ResNet's map."""
    model = vitswin_jax.create_model(name)
    shapes = [(model.embed_dim, 4)] * 100
    for size in (1, 2):
        sides = tuple(size * side for side in pair(model.img_size))
        with claiming(name, model_fields(model) | {"img_size": sides}, shapes):
            pass
