"""Weights by path, by published name and by the hub's: what wins, and what is known of them."""

import dataclasses
import functools
import hashlib
import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw
from web_server import serving

import vitswin_jax
from vitswin_jax.cli import main
from vitswin_jax.core.types import UserError
from vitswin_jax.weights.locate import locate
from vitswin_jax.weights.published import published

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 192, "depth": 1, "num_heads": 3,
        "num_classes": 5, "mlp_ratio": 0.5}  # fmt: skip
DEIT = "deit/deit_tiny_patch16_224-a1311bcf"


@functools.cache
def tiny():
    model = vitswin_jax.create_model("vit", **TINY)
    return model, draw(model)


def written(path, format="timm"):
    path.parent.mkdir(parents=True, exist_ok=True)
    return vitswin_jax.save_pretrained(path, *tiny(), format=format)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITSWIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server that has a small DeiT under the published name, digest included."""
    body = written(tmp_path / "a.pth").read_bytes()
    with serving({"/deit_tiny_patch16_224-a1311bcf.pth": body}) as site:
        row = published()[DEIT]
        row = dataclasses.replace(
            row,
            address=f"{site.address}/{row.file}",
            digest=f"sha256:{hashlib.sha256(body).hexdigest()[:8]}",
        )
        monkeypatch.setitem(published(), DEIT, row)
        yield site


def test_by_published_name(site, cache):
    model, variables = vitswin_jax.load_pretrained("deit/deit_tiny_patch16_224")
    assert model == tiny()[0]
    images = jnp.ones((1, 16, 16, 3))
    np.testing.assert_array_equal(
        model.apply(variables, images), tiny()[0].apply(tiny()[1], images)
    )
    metadata = vitswin_jax.load_metadata(DEIT)
    file = cache / "weights" / "deit" / "deit_tiny_patch16_224-a1311bcf.pth"
    assert metadata.provenance == {
        "source": "timm",
        "file": "deit_tiny_patch16_224-a1311bcf.pth",
        "format": "timm",
        "prefix": "",
        "dtype": "float32",
        "published": DEIT,
        "address": f"{site.address}/deit_tiny_patch16_224-a1311bcf.pth",
        "digest": published()[DEIT].digest,
        "class_list": "imagenet1k",
        "expected_top1": 72.2,
        "expected_top1_by": "facebookresearch/deit:README_deit.md",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    # What no plain ViT's file shows: ImageNet's statistics, the original's crop.
    assert metadata.preprocess.mean == (0.485, 0.456, 0.406)
    assert metadata.preprocess.crop_fraction == 0.875
    assert vitswin_jax.make_preprocess(DEIT).args[0] == metadata.preprocess
    assert site.asked == [None]


def test_convert_writes_it_into_the_native_file(site, capsys):
    assert main(["convert", DEIT, "b.safetensors"]) == 0
    assert capsys.readouterr().out == "b.safetensors: vit from timm\n"
    metadata = vitswin_jax.load_metadata("b.safetensors")
    assert metadata.provenance["published"] == DEIT
    assert metadata.provenance["expected_top1"] == 72.2
    assert metadata.preprocess.mean[0] == 0.485
    # Nobody published how good it is at another size.
    assert main(["convert", DEIT, "c.safetensors", "--img-size", "24"]) == 0
    metadata = vitswin_jax.load_metadata("c.safetensors")
    assert metadata.provenance["published"] == DEIT
    assert "expected_top1" not in metadata.provenance
    assert metadata.preprocess.img_size == (24, 24)
    assert len(site.asked) == 1


def test_a_path_wins_over_a_name(tmp_path):
    written(tmp_path / "augreg" / "a.pth").rename("augreg/L_16")
    assert vitswin_jax.load_pretrained("augreg/L_16")[0] == tiny()[0]
    assert "published" not in vitswin_jax.load_metadata("augreg/L_16").provenance


def test_put_into_the_cache_by_hand(cache):
    written(cache / "weights" / "vit" / "imagenet21k" / "ViT-B_16.npz", format="google")
    metadata = vitswin_jax.load_metadata("vit/imagenet21k/ViT-B_16")
    assert metadata.provenance["class_list"] == "imagenet21k"
    assert "expected_top1" not in metadata.provenance
    assert metadata.preprocess.crop_fraction == 0.9


def test_only_a_digest_proves_what_a_local_file_is(tmp_path, monkeypatch, caplog):
    file = written(tmp_path / "deit_tiny_patch16_224-a1311bcf.pth")
    with caplog.at_level(logging.INFO, "vitswin_jax"):
        metadata = vitswin_jax.load_metadata(file)
    assert "published" not in metadata.provenance
    assert metadata.preprocess.mean[0] == 0.5
    assert f"has the name of {DEIT} but other contents" in caplog.text

    file = file.rename(tmp_path / published()["deit/deit_small_patch16_224-cd65a155"].file)
    digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    row = published()["deit/deit_small_patch16_224-cd65a155"]
    monkeypatch.setitem(published(), row.name, dataclasses.replace(row, digest=digest))
    metadata = vitswin_jax.load_metadata(file)
    assert metadata.provenance["published"] == row.name
    assert metadata.preprocess.mean[0] == 0.485
    file.write_bytes(file.read_bytes() + b"\0")  # the answer is not kept for another content
    assert locate(file).provenance == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("augreg/L/16", "augreg/L/16 is the name of several files: augreg/L_16-i21k-300ep"),
        ("deit/deit_tinny_patch16_224-a1311bcf", f"no such file, .*did you mean '{DEIT}'"),
        ("diet/deit_tiny_patch16_224-a1311bcf", f"no such file or folder; .*did you mean '{DEIT}'"),
        ("runs/flowers", "no such file or folder; a weights file or a workdir is needed;"),
        ("a/b.pth", r"no such file or folder; a weights file or a workdir is needed\.$"),
    ],
)
def test_mistakes_are_one_line(name, message):
    with pytest.raises(UserError, match=message) as error:
        vitswin_jax.load_pretrained(name)
    assert "\n" not in str(error.value)


CONFIG = {
    "architecture": "deit_tiny_patch16_224",
    "num_classes": 5,
    "pretrained_cfg": {
        "tag": "fb_in1k",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "crop_pct": 0.7,
        "crop_mode": "squash",
        "interpolation": "bilinear",
    },
}


def test_a_configuration_beside_the_weights(tmp_path):
    written(tmp_path / "clone" / "model.safetensors")
    assert vitswin_jax.load_metadata(tmp_path / "clone").preprocess.mean[0] == 0.5
    (tmp_path / "clone" / "config.json").write_text(json.dumps(CONFIG))
    preprocess = vitswin_jax.load_metadata(tmp_path / "clone").preprocess
    assert dataclasses.asdict(preprocess) == {
        "img_size": (16, 16), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6),
        "crop_fraction": 0.7, "interpolation": "bilinear", "crop_mode": "squash_crop",
    }  # fmt: skip
    for names in ("abcde", "abc"):  # the second are another head's
        config = {"id2label": {str(i): name for i, name in enumerate(names)}}
        (tmp_path / "clone" / "config.json").write_text(json.dumps(config))
        found = vitswin_jax.load_metadata(tmp_path / "clone").class_names
        assert found == (tuple(names) if len(names) == 5 else None)


@pytest.mark.parametrize(
    "name", ["x" * 300, "x/" * 3000, "~nobody_of_that_name/a", "a\0b", "\ud800"]
)
def test_a_name_that_no_file_can_have_is_one_line(name):
    with pytest.raises(UserError, match="no such file or folder") as error:
        locate(name)
    assert len(str(error.value)) < 400
    assert str(error.value).isprintable()


def test_a_folder_of_other_weights_is_named(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(UserError, match="is a TensorFlow SavedModel"):
        locate(tmp_path)
