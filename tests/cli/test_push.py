"""`vitswin push`: a run as a repository of a hub on loopback, and back."""

import os
import subprocess
import sys

import pytest
from fixtures_hub import TOKEN
from hub_server import serving_hub

MISSING = "no such file or folder; a weights file or a workdir is needed."


@pytest.fixture
def run(workdir):
    """A workdir that has a page, as a run's has."""
    (workdir / "metrics.jsonl").write_text("")
    (workdir / "report.html").write_text("<html>the run's page</html>")
    return workdir


def test_a_run_is_pushed_with_its_page(vitswin, run, hub):
    status, out, err = vitswin("push", run, "alice/digits", "--private", "--license", "MIT")
    assert (status, err) == (0, "")
    model = hub.models["alice/digits"]
    assert out.splitlines() == [
        "alice/digits: vit in the format timm: README.md, config.json, model.safetensors, "
        "report.html",
        out.splitlines()[1],
        f"{hub.address}/alice/digits (commit {model.head[:8]})",
    ]
    assert out.splitlines()[1].startswith("largest difference of the logits: 0 (their std is ")
    assert model.private
    assert model.files["report.html"] == (run / "report.html").read_bytes()
    assert b"license: mit" in model.files["README.md"]
    assert b"[report.html](./report.html)" in model.files["README.md"]


def test_flags_choose_the_format_the_page_and_the_message(vitswin, run, hub):
    arguments = ("--no-report", "--to", "huggingface", "--message", "my words")
    status, out, err = vitswin("push", run, "alice/digits", *arguments)
    assert (status, err) == (0, "")
    assert set(hub.models["alice/digits"].files) - {".gitattributes"} == {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    assert hub.models["alice/digits"].messages[-1] == "my words"
    assert "in the format huggingface" in out


def test_mistakes_are_one_line_before_the_weights_are_read(vitswin, hub, monkeypatch):
    for name, says in (
        ("digits", "'digits' is no name of a repository; give USER/NAME or ORGANISATION/NAME."),
        ("alice/digits", f"no_such_run: {MISSING}"),
    ):
        assert vitswin("push", "no_such_run", name) == (1, "", f"error: {says}\n")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    status, out, err = vitswin("push", "no_such_run", "alice/digits")
    assert (status, out) == (1, "")
    assert err == (
        "error: alice/digits: needs the package huggingface_hub; pip install 'vitswin_jax[hub]'.\n"
    )


@pytest.mark.long
def test_the_environment_decides_as_it_does_for_the_hubs_package(run, tmp_path):
    """In processes of their own: HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE."""
    pytest.importorskip("huggingface_hub")

    home = {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}

    def vitswin(*arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "vitswin_jax.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=os.environ | home | environment,
        )
        return done.returncode, done.stdout, done.stderr

    def convert(name, **environment):
        arguments = ("hf-hub:alice/digits", tmp_path / name)
        assert vitswin("convert", *arguments, **environment) == (
            0,
            f"{tmp_path / name}: vit from timm\n",
            "",
        )
        return (tmp_path / name).read_bytes()

    with serving_hub(tokens={TOKEN: ("alice",)}) as hub:
        place = {"HF_ENDPOINT": hub.address}
        status, _, err = vitswin("push", run, "alice/digits", **place)
        need = "a push needs a token; set HF_TOKEN, or use `hf auth login`."
        assert (status, err) == (1, f"error: alice/digits: {need}\n")
        place["HF_TOKEN"] = TOKEN
        status, out, err = vitswin("push", run, "alice/digits", "--private", **place)
        assert (status, err) == (0, "")
        assert out.splitlines()[-1].startswith(f"{hub.address}/alice/digits (commit ")
        online = convert("a.safetensors", **place)
    assert convert("b.safetensors", HF_HUB_OFFLINE="1") == online
