"""Pushes to a hub on loopback: what is published, what reads it back, and what is refused."""

import functools
import json

import jax
import numpy as np
import pytest
import yaml
from drawn import draw
from fixtures_hub import TOKEN, go_offline
from hub_server import Model

import vitswin_jax
from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.pretraining import create_pretraining
from vitswin_jax.weights import publish
from vitswin_jax.weights.files import describe

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2,
       "num_classes": 3}  # fmt: skip
SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 4),
        "window_size": 4, "num_classes": 3}  # fmt: skip
PREPROCESS = Preprocess((16, 16), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 1.0, crop_mode="squash")
METADATA = {
    "name": "vit",
    "preprocess": PREPROCESS,
    "class_names": ("a cat", "a | dog", "<b>"),
    "train_class_counts": (5, 6, 7),
    "metrics": {"test/accuracy": 0.75, "test/loss": 0.5},
    "provenance": {
        "dataset": "/home/alice/secret/flowers",
        "data_dir": "/home/alice/data",
        "command": "vitswin train /home/alice/secret/flowers",
        "test_split": "val",
        "multi_label": True,
        "init_from": {"init_from": "/home/alice/old/model.safetensors", "sha256": "00"},
        "step": 12,
    },
}
PRIVATE = ("/home", "secret", TOKEN, "vitswin train")


@functools.cache
def model_of(family="vit", **fields):
    model = vitswin_jax.create_model(family, **{**(VIT if family == "vit" else SWIN), **fields})
    return model, draw(model)


def push(name="alice/pets", *, metadata=None, private=False, overwrite=False, **options):
    repository = publish.check_repository(name, private=private, overwrite=overwrite)
    model, variables = model_of()
    return publish.push(repository, model, variables, describe(model, metadata), **options)


def card_of(files):
    """Returns the metadata of a card and its text."""
    _, data, text = files["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(data), text


def test_a_push_is_one_commit_that_reads_back(hub, tmp_path):
    page = tmp_path / "report.html"
    page.write_text("<html>")
    done = push(metadata=METADATA, private=True, licence="mit", page=page)
    model = hub.models["alice/pets"]
    assert model.private
    assert model.messages == ["initial commit", "vit by vitswin_jax"]
    assert set(done.files) == set(model.files) - {".gitattributes"}
    assert set(done.files) == {"README.md", "config.json", "model.safetensors", "report.html"}
    assert (done.format, done.commit, done.otherwise) == ("timm", model.head, "")
    assert done.address == f"{hub.address}/alice/pets"
    assert hub.asked[-1] == "POST /api/models/alice/pets/commit/main"
    opened = vitswin_jax.open_pretrained("hf-hub:alice/pets")
    assert opened.model == model_of()[0]
    jax.tree.map(np.testing.assert_array_equal, opened.variables, model_of()[1])
    assert opened.preprocess == PREPROCESS
    assert opened.class_names == METADATA["class_names"]
    assert opened.multi_label
    assert opened.metadata.metrics == METADATA["metrics"]
    assert opened.metadata.train_class_counts == (5, 6, 7)
    known = opened.provenance
    assert (known["dataset"], known["step"], known["hub"]) == ("flowers", 12, "alice/pets")
    assert known["init_from"] == {"init_from": "model.safetensors", "sha256": "00"}


def test_the_card_states_what_is_known(hub):
    push(metadata=METADATA, licence="mit")
    data, text = card_of(hub.models["alice/pets"].files)
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": "flowers", "type": "flowers", "split": "val"},
        "metrics": [{"type": "accuracy", "value": 0.75, "name": "Accuracy"}],
    }
    assert data == {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "license": "mit",
        "metrics": ["accuracy"],
        "tags": ["vitswin_jax", "timm", "transformers", "jax", "vit", "image-classification"],
        "model-index": [{"name": "pets", "results": [result]}],
    }
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model_of()[1]))
    for line in (
        f"A Vision Transformer (`vit`) of {parameters:,} parameters for image classification on "
        "images of 16 × 16 pixels, trained on `flowers`.",
        "| accuracy | 75.00 % | flowers, val |",
        r"3 classes: a cat, a \| dog, &lt;b>. An image may have several.",
        "| resize | the whole image to 16 × 16, whatever its shape is (bicubic) |",
        "| subtract the mean | 0.4, 0.5, 0.6 |",
        'model, variables = vitswin_jax.load_pretrained("hf-hub:alice/pets")',
        'model = timm.create_model("hf-hub:alice/pets", pretrained=True).eval()',
        'model = AutoModelForImageClassification.from_pretrained("alice/pets")',
        "the largest difference on 2 random images is 0, and",
        "| started from | model.safetensors |",
        "| step | 12 |",
        "`mit`",
    ):
        assert line in text, line


@pytest.mark.parametrize("format", ["timm", "native"])
def test_nothing_of_the_machine_is_published(hub, format):
    push(metadata=METADATA, format=format)
    for name, data in hub.models["alice/pets"].files.items():
        text = data.decode(errors="replace")
        assert not [word for word in PRIVATE if word in text], name


@pytest.mark.parametrize(
    ("format", "family", "fields"),
    [
        ("timm", "vit", {}),
        ("huggingface", "vit", {"norm_eps": 1e-12}),
        ("native", "vit", {"norm_eps": 1e-4, "qk_norm": True}),
        ("timm", "swin", {"window_clip": "per_axis", "pad_before_roll": False}),
        ("huggingface", "swin", {"window_clip": "min", "pad_before_roll": True}),
        ("native", "swin_mlp", {"window_clip": "min"}),
    ],
)
def test_the_first_library_that_computes_the_same(tmp_path, format, family, fields):
    model, variables = model_of(family, **fields)
    found, path, otherwise = publish._write(tmp_path, model, variables, describe(model, None), None)
    assert (found, otherwise) == (format, "")
    assert path.is_dir() == (format != "native")


def test_a_library_that_is_asked_for_is_used_with_what_it_computes_otherwise(hub):
    model, variables = model_of(norm_eps=1e-4)
    metadata = describe(model, METADATA)
    repository = publish.check_repository("alice/pets")
    done = publish.push(repository, model, variables, metadata, format="timm")
    assert done.otherwise == "timm's own code computes with norm_eps=1e-06 (here 0.0001)"
    files = hub.models["alice/pets"].files
    data, text = card_of(files)
    assert f"{done.otherwise}, so that its outputs differ." in text
    assert "model-index" not in data  # its accuracy is that of the other function
    assert "metrics" not in json.loads(files["config.json"])["vitswin_jax"]
    with pytest.raises(UserError, match="timm cannot hold swin_mlp"):
        publish.push(
            publish.check_repository("alice/mlp"), *model_of("swin_mlp"),
            describe(model_of("swin_mlp")[0], None), format="timm",
        )  # fmt: skip
    assert "alice/mlp" not in hub.models


def test_a_list_of_other_classes_is_not_in_the_card(hub):
    push(metadata={"provenance": {"class_list": "imagenet1k"}})
    assert "3 classes." in card_of(hub.models["alice/pets"].files)[1]


def test_a_model_with_a_decoder_is_refused_before_its_file_is_written(hub, tmp_path):
    encoder = vitswin_jax.create_model("vit", **VIT | {"num_classes": 0})
    model = create_pretraining(encoder, method="mae")
    path = tmp_path / "mae.safetensors"
    with pytest.raises(UserError, match="a model with its decoder is not published"):
        vitswin_jax.save_pretrained(path, model, {"params": {}}, push_to="alice/mae")
    assert not path.exists() and "alice/mae" not in hub.models


def test_features_have_no_classes_in_a_card(hub):
    model, variables = model_of(num_classes=0, norm_eps=1e-12)
    repository = publish.check_repository("lab/features")
    done = publish.push(repository, model, variables, describe(model, None))
    data, text = card_of(hub.models["lab/features"].files)
    assert done.format == "huggingface"
    assert (data["library_name"], data["pipeline_tag"]) == (
        "transformers",
        "image-feature-extraction",
    )
    assert not {"model-index", "metrics", "license", "datasets"} & set(data)
    assert 'ViTModel.from_pretrained("lab/features")' in text
    assert "## Classes" not in text
    assert "The author states no licence." in text
    assert vitswin_jax.load_pretrained("hf-hub:lab/features")[0] == model


def test_datasets_and_models_of_the_hub_are_linked(hub):
    provenance = {"dataset": "hf:ylecun/mnist:default", "init_from": "hf-hub:google/vit@main"}
    push(metadata={"provenance": provenance, "metrics": {"test/accuracy": 0.5}})
    data, _ = card_of(hub.models["alice/pets"].files)
    assert (data["datasets"], data["base_model"]) == (["ylecun/mnist"], "google/vit")


def test_a_second_push_replaces_the_first_and_removes_what_it_does_not_write(hub):
    push(format="huggingface")
    model = hub.models["alice/pets"]
    assert "preprocessor_config.json" in model.files
    push(format="native", metadata=METADATA, message="again")
    assert set(model.files) == {".gitattributes", "README.md", "model.safetensors"}
    assert model.messages[-1] == "again"
    assert vitswin_jax.load_metadata("hf-hub:alice/pets").train_class_counts == (5, 6, 7)
    first = list(model.commits)[1]
    assert (
        vitswin_jax.load_metadata(f"hf-hub:alice/pets@{first}").class_names
        != (METADATA["class_names"])
    )


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"model.safetensors": b"x", "README.md": b"mine"}, "has README.md, model.safetensors,"),
        ({"pytorch_model.bin": b"x"}, "has pytorch_model.bin, which no push wrote"),
    ],
)
def test_a_repository_with_other_files_is_left_as_it_is(hub, files, says):
    model = hub.models["alice/pets"] = Model()
    model.commit(files, "by hand")
    with pytest.raises(UserError, match=says):
        push()
    assert model.files == files
    push(overwrite=True)
    assert model.files.keys() == {*files, "README.md", "config.json", "model.safetensors"}
    assert model.files["README.md"].startswith(b"---\nlibrary_name: timm")


def test_a_public_repository_is_not_taken_for_a_private_one(hub):
    push()
    with pytest.raises(UserError, match="alice/pets: exists and is public, and a push makes no"):
        push(private=True)
    assert len(hub.models["alice/pets"].commits) == 2


def test_a_repository_that_changed_meanwhile_is_not_overwritten(hub):
    push()
    repository = publish.check_repository("alice/pets")
    hub.models["alice/pets"].commit({"README.md": b"another push's"}, "meanwhile")
    with pytest.raises(UserError, match="alice/pets: has changed meanwhile; repeat the command"):
        publish._upload(repository, {"README.md": b"mine"}, "mine")
    assert hub.models["alice/pets"].files == {"README.md": b"another push's"}


@pytest.mark.parametrize(
    "name", ["pets", "", "a/b/c", "alice/", "/pets", "alice/pets@main", "a b/c"]
)
def test_what_is_no_name_is_named(hub, name):
    with pytest.raises(UserError, match="is no name of a repository; give USER/NAME") as error:
        publish.check_repository(name)
    assert str(error.value).startswith(repr(name))
    assert not hub.asked


@pytest.mark.parametrize(
    ("name", "token", "says"),
    [
        ("alice/pets", None, "a push needs a token; set HF_TOKEN, or use `hf auth login`"),
        ("alice/pets", "hf_old", "the hub does not accept the token of HF_TOKEN"),
        ("bob/pets", TOKEN, "the token of HF_TOKEN or of `hf auth login` may not write there"),
        ("alice/x--y", TOKEN, "is no name of a repository; give USER/NAME"),
        ("alice/x..git", TOKEN, "is no name of a repository; give USER/NAME"),
    ],
)
def test_who_may_not_write_is_given_one_line(hub, monkeypatch, name, token, says):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError) as error:
        publish._upload(publish.check_repository(name), {"README.md": b"x"}, "x")
    assert str(error.value).startswith(f"{name}: {says}")
    assert str(error.value).isprintable()
    assert "hf_" not in str(error.value)
    assert not hub.models


@pytest.mark.parametrize(
    ("fail", "says"),
    [
        ({"POST /api/repos/create": (402, {"error": "pay"})}, "the hub asks for payment"),
        ({"POST /api/validate-yaml": (400, {"errors": [{"message": "license"}]})},
         "the hub refuses the name or the metadata of the card"),
        ({"PUT /upload": (403, b"<Error>AccessDenied</Error>")}, "the token of HF_TOKEN"),
        ({"objects/batch": (200, {"objects": [
            {"oid": "0", "size": 1, "error": {"code": 422, "message": "too large"}}]})},
         "the hub does not take a file of it; is it larger than the account may store?"),
        ({"POST .*/commit/": (413, {"error": "payload"})}, "the hub refuses it as too large"),
        ({"POST .*/commit/": (200, b"<html>")}, "the server does not answer as the hub"),
        pytest.param({"PUT /upload": "cut"}, "the hub cannot be reached; nothing is published",
                     marks=pytest.mark.long),  # its package tries for 20 s
        pytest.param({"PUT /upload": (503, b"")}, "the hub has an error of its own; try again",
                     marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_an_upload_that_fails_publishes_nothing(hub, tmp_path, capfd, caplog, fail, says):
    hub.fail |= fail
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"x" * 1_000_000)
    repository = publish.check_repository("alice/pets")
    with pytest.raises(UserError) as error:
        publish._upload(repository, {"README.md": b"x", weights.name: weights}, "x")
    assert str(error.value).startswith(f"alice/pets: {says}")
    assert not str(error.value).endswith("?.")
    assert hub.signed not in str(error.value) + "".join(capfd.readouterr()) + caplog.text
    assert all(set(model.files) == {".gitattributes"} for model in hub.models.values())
    hub.fail.clear()
    publish._upload(publish.check_repository("alice/pets"), {weights.name: weights}, "again")
    assert hub.models["alice/pets"].files[weights.name] == weights.read_bytes()


def test_without_a_network_or_offline_the_line_says_so(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="alice/pets: the hub cannot be reached; nothing is"):
        publish.check_repository("alice/pets")
    go_offline(monkeypatch)
    with pytest.raises(UserError, match="alice/pets: HF_HUB_OFFLINE is set, and a push needs"):
        publish.check_repository("alice/pets")
    assert not hub.asked


def test_saving_pushes_too(hub, tmp_path):
    model, variables = model_of()
    path = vitswin_jax.save_pretrained(
        tmp_path / "pets", model, variables, format="timm", metadata=METADATA,
        push_to="alice/pets", private=True, license="mit",
    )  # fmt: skip
    pushed = hub.models["alice/pets"]
    assert pushed.private
    assert card_of(pushed.files)[0]["license"] == "mit"
    assert (path / "model.safetensors").read_bytes() == pushed.files["model.safetensors"]
    assert sorted(each.name for each in path.iterdir()) == ["config.json", "model.safetensors"]


def test_what_cannot_be_pushed_is_not_saved_either(hub, tmp_path):
    del hub
    model, variables = model_of()
    for options, says in (
        ({"push_to": "bob"}, "'bob' is no name of a repository"),
        ({"push_to": "alice/pets", "format": "google"}, "format='google' must be one of timm"),
    ):
        with pytest.raises(UserError, match=says):
            vitswin_jax.save_pretrained(tmp_path / "pets.npz", model, variables, **options)
    assert not list(tmp_path.glob("pets*"))
