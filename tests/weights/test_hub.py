"""Names of the Hugging Face hub: what is read from it and from its cache, and why it refuses."""

import functools
import hashlib
import json
import sys
import time

import pytest
from drawn import draw
from fixtures_hub import TOKEN, go_offline
from hub_server import Model

import vitswin_jax
from vitswin_jax.core.types import UserError
from vitswin_jax.weights.hub import READING, WRITING, check_blob, reason_of
from vitswin_jax.weights.locate import locate

CONFIG = {
    "architecture": "deit_tiny_patch16_224",
    "num_classes": 5,
    "pretrained_cfg": {"tag": "fb_in1k", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
}


@functools.cache
def tiny():
    model = vitswin_jax.create_model(
        "vit", img_size=16, patch_size=4, embed_dim=192, depth=1, num_heads=3, num_classes=5,
        mlp_ratio=0.5,
    )  # fmt: skip
    return model, draw(model)


def written(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return vitswin_jax.save_pretrained(path, *tiny(), format="timm")


def test_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r"hf-hub:timm/x: needs .* pip install 'vitswin_jax\[hub\]'"
    ):
        vitswin_jax.load_pretrained("hf-hub:timm/x")


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The hub's own cache with one repository, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    repository = tmp_path / "hub" / "models--timm--deit_tiny"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return repository / "snapshots" / ("0" * 40)


def test_by_the_hubs_name_from_its_cache(cached):
    written(cached / "pytorch_model.bin")
    (cached / "config.json").write_text(json.dumps(CONFIG))
    assert vitswin_jax.load_pretrained("hf-hub:timm/deit_tiny")[0] == tiny()[0]
    metadata = vitswin_jax.load_metadata("hf-hub:timm/deit_tiny@main")
    assert metadata.preprocess.mean[0] == 0.1
    assert metadata.provenance["hub"] == "timm/deit_tiny"
    assert metadata.provenance["revision"] == "0" * 40


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("name", ["timm/other", "no/such/name", "timm/deit_tiny@v2"])
def test_the_hubs_refusals_are_one_line(name):
    with pytest.raises(UserError, match=f"^hf-hub:{name}: .") as error:
        vitswin_jax.load_pretrained(f"hf-hub:{name}")
    assert "\n" not in str(error.value)


def test_what_came_from_the_hub_is_what_it_is_called(tmp_path):
    """Its cache has blobs by digest, and links to them by name."""
    body = b"weights"
    digest = hashlib.sha256(body).hexdigest()
    for name, data, right in (
        (digest, body, True),
        (digest, b"WEIGHTS", False),
        ("1" * 40, b"", True),
    ):
        blob, link = tmp_path / name, tmp_path / "model.safetensors"
        blob.write_bytes(data)
        link.symlink_to(blob)
        if right:
            check_blob(link)
            assert link.read_bytes() == data
            link.unlink()
        else:
            with pytest.raises(
                UserError, match=rf"does not have the sha256 {digest[:8]}\.\.\. that the hub"
            ):
                check_blob(link)
            assert not link.is_symlink()
            assert not blob.exists()


class RepositoryNotFoundError(OSError):
    """As huggingface_hub has it, which need not be installed."""


class GatedRepoError(RepositoryNotFoundError):
    """As huggingface_hub has it."""


class Answer:
    """As a client's exception has it."""

    def __init__(self, status_code):
        self.status_code = status_code


class HubHTTPError(OSError):
    """As huggingface_hub has it."""

    def __init__(self, status):
        super().__init__(f"{status} for https://hub.example/x?X-Amz-Signature=abc")
        self.response = Answer(status)


def raised_from(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RepositoryNotFoundError("401 Client Error. (Request ID: Root=1-2)"), "is no repository"),
        (GatedRepoError("403"), "is gated: accept its licence"),
        (TimeoutError("timed out"), "did not answer in time"),
        (PermissionError(13, "Permission denied"), "cannot be downloaded (Permission denied)"),
        (RuntimeError("x" * 2000), "cannot be downloaded (RuntimeError)"),
        (HubHTTPError(401), "the hub does not accept the token"),
        (HubHTTPError(429), "the hub had too many requests"),
        (HubHTTPError(503), "the hub has an error of its own"),
        (raised_from(RuntimeError("uploading"), HubHTTPError(413)), "the hub refuses it"),
        (raised_from(RuntimeError("a"), raised_from(ValueError("b"), OSError(28, "Disk full"))),
         "cannot be downloaded (Disk full)"),
        (ConnectionError("Network error: HTTP status client error (403 Forbidden), domain: x"),
         "the token of HF_TOKEN or of `hf auth login` may not read it"),
        (ConnectionError("Network error: 127.0.0.1:403"), "cannot be reached"),
    ],
)  # fmt: skip
def test_the_hubs_exceptions_are_worded_here(error, says):
    assert reason_of(error, READING, "cannot be downloaded").startswith(says)


def test_reasons_are_texts_that_end_a_line():
    for reason in {*READING.values(), *WRITING.values()}:
        assert reason.isprintable()
        assert not reason.endswith(".")
        assert len(reason) < 200


@pytest.fixture
def served(hub, tmp_path):
    """A repository of alice's with two commits; the first has no class names."""
    body = written(tmp_path / "a" / "model.safetensors").read_bytes()
    hub.blobs[hashlib.sha256(body).hexdigest()] = body
    model = hub.models["alice/tiny"] = Model(private=True)
    first = {"model.safetensors": body, "config.json": json.dumps(CONFIG).encode()}
    names = {**CONFIG, "label_names": list("abcde")}
    model.commit(first, "first")
    model.commit({**first, "config.json": json.dumps(names).encode()}, "second")
    return model


def test_a_private_repository_is_read_by_the_librarys_own_token(served, hub, monkeypatch):
    assert vitswin_jax.load_pretrained("hf-hub:alice/tiny")[0] == tiny()[0]
    metadata = vitswin_jax.load_metadata("hf-hub:alice/tiny")
    assert metadata.class_names == tuple("abcde")
    assert metadata.provenance["revision"] == served.head
    first = next(iter(served.commits))
    assert vitswin_jax.load_metadata(f"hf-hub:alice/tiny@{first}").class_names is None
    go_offline(monkeypatch)
    asked = len(hub.asked)
    assert vitswin_jax.load_metadata("hf-hub:alice/tiny").class_names == tuple("abcde")
    assert len(hub.asked) == asked


@pytest.mark.parametrize(
    ("name", "token", "says"),
    [
        ("alice/tiny", None, "is no repository of the hub, or a private one, for HF_TOKEN"),
        ("alice/tiny", "hf_bob", "is no repository of the hub, or a private one, for HF_TOKEN"),
        ("alice/tiny", "hf_wrong", "the hub does not accept the token of HF_TOKEN"),
        ("alice/none", TOKEN, "is no repository of the hub"),
        ("alice/tiny@v9", TOKEN, "has no such revision"),
        ("lab/gated", "hf_bob", "is gated: accept its licence"),
        ("lab/empty", TOKEN, "has none of model.safetensors"),
        ("lab/empty@x y", TOKEN, "has no such revision"),
        ("alice", TOKEN, "is no repository of the hub"),
        ("a/b/c", TOKEN, "is no name of a repository"),
        ("", TOKEN, "is no name of a repository"),
    ],
)
def test_what_cannot_be_read_is_one_line(served, hub, monkeypatch, name, token, says):
    del served
    hub.models["lab/gated"] = Model(gated=True)
    hub.models["lab/empty"] = Model()
    for model in (hub.models["lab/gated"], hub.models["lab/empty"]):
        model.commit({"README.md": b""}, "first")
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError) as error:
        locate(f"hf-hub:{name}")
    assert str(error.value).startswith(f"hf-hub:{name}: {says}")
    assert "\n" not in str(error.value)
    assert "hf_" not in str(error.value).removeprefix(f"hf-hub:{name}")


@pytest.mark.parametrize(
    ("fail", "says"),
    [
        pytest.param({"HEAD /alice/tiny/resolve": (503, b"")}, "the hub has an error of its own",
                     marks=pytest.mark.long),  # its package tries for 20 s
        ({"HEAD /alice/tiny/resolve": (200, b"<html>")}, "the server does not answer as the hub"),
        ({"GET /cdn": (403, b"expired")}, "the token of HF_TOKEN or of `hf auth login` may not"),
        ({"GET /cdn": (200, b"other bytes")}, ""),
    ],
)  # fmt: skip
def test_a_hub_that_fails_is_one_line(served, hub, fail, says, capfd, caplog):
    del served
    hub.fail |= fail
    with pytest.raises(UserError) as error:
        locate("hf-hub:alice/tiny")
    assert str(error.value).startswith(f"hf-hub:alice/tiny: {says}")
    assert hub.signed not in str(error.value) + "".join(capfd.readouterr()) + caplog.text


@pytest.mark.long  # the hub's package tries for 20 s
def test_without_a_network_the_line_says_so(hub, monkeypatch):
    for name in ("constants.ENDPOINT", "constants.HUGGINGFACE_CO_URL_TEMPLATE",
                 "file_download.HUGGINGFACE_CO_URL_TEMPLATE"):  # fmt: skip
        path = "/{repo_id}/resolve/{revision}/{filename}" * name.endswith("TEMPLATE")
        monkeypatch.setattr(f"huggingface_hub.{name}", f"http://127.0.0.1:1{path}", raising=False)
    began = time.monotonic()
    with pytest.raises(UserError, match="is not in the hub's cache, and the hub cannot be reached"):
        locate("hf-hub:alice/tiny")
    assert time.monotonic() - began < 60
    go_offline(monkeypatch)
    with pytest.raises(UserError, match="is not in the hub's cache, and HF_HUB_OFFLINE is set"):
        locate("hf-hub:alice/tiny")
