"""Runs whose workdir is in an object store, with real training."""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from fixtures_train import ROOT
from safetensors.numpy import load_file

from vitswin_jax.cli import main
from vitswin_jax.core.store import Store, StoreError
from vitswin_jax.trainer import train_and_evaluate


@pytest.mark.long
def test_a_run_in_a_store_is_trained_read_and_resumed(make_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VITSWIN_CACHE", str(tmp_path / "cache"))
    runs = f"memory://bucket{tmp_path}/runs"
    config = make_config()
    outcome = train_and_evaluate(config, f"{runs}/x")
    here = train_and_evaluate(config, tmp_path / "here")
    assert outcome.test_accuracy == here.test_accuracy
    there = set(Store(f"{runs}/x").list())
    on_disk = {
        path.relative_to(tmp_path / "here").as_posix()
        for path in (tmp_path / "here").rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    kinds = {name.split("/")[0].split(".")[0] for name in on_disk}
    assert {name.split("/")[0].split(".")[0] for name in there - {".run.json"}} == kinds
    shutil.rmtree(tmp_path / "cache")  # another host
    assert train_and_evaluate(config, f"{runs}/x").test_accuracy == here.test_accuracy
    capsys.readouterr()
    assert main(["runs", runs]) == 0
    assert f"page: {runs}/runs.html" in capsys.readouterr().out
    assert main(["evaluate", f"{runs}/x@best"]) == 0
    assert f"report: {runs}/x/evaluation-best-digits-test.html" in capsys.readouterr().out
    assert {"evaluation-best-digits-test.html"} <= set(Store(f"{runs}/x").list())


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """Starts a server of S3's protocol; gives the environment of its clients."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", f"from moto.server import main; main(['-p', '{port}'])"]
    log = (tmp_path_factory.mktemp("moto") / "log").open("w", encoding="utf-8")
    server = subprocess.Popen(command, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/moto-api/"):
            break
        time.sleep(0.1)
    environment = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        yield environment
    server.kill()
    server.wait()
    log.close()


def train(command, environment, cache):
    return subprocess.Popen(
        command,
        env=environment | {"VITSWIN_CACHE": str(cache)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


@pytest.mark.long
def test_a_run_on_s3_is_killed_and_resumed_on_another_host_bit_for_bit(
    s3, train_command, environment, tmp_path
):
    """The resumed run ends with the weights of a run on a disk that nothing stopped."""
    environment = environment | s3
    keys = {"optim.epochs": 3, "run.eval_epochs": 1.5, "run.checkpoint_epochs": 0.5}
    changes = [f"--config.{key}={value}" for key, value in keys.items()]
    whole = train(train_command(tmp_path / "whole", *changes), environment, tmp_path / "0")
    text = whole.communicate()[0]
    assert whole.returncode == 0, text
    url = "s3://bucket/runs/x"
    command = train_command(url, *changes)
    killed = train(command, environment, tmp_path / "1")
    store = Store(url)
    give_up = time.monotonic() + 400
    while not any(name.endswith(".json") and "checkpoints/" in name for name in store.list()):
        assert killed.poll() is None, killed.stdout.read()
        assert time.monotonic() < give_up
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    resumed = train(command, environment, tmp_path / "2")
    text = resumed.communicate()[0]
    assert resumed.returncode == 0, text
    assert "waits up to 25 s" in text
    assert "resumed: after step" in text
    store.fetch({"model.safetensors": tmp_path / "model.safetensors"})
    ours = load_file(tmp_path / "model.safetensors")
    for name, array in load_file(tmp_path / "whole" / "model.safetensors").items():
        np.testing.assert_array_equal(ours[name], array)


@pytest.mark.long
def test_what_is_wrong_with_a_bucket_is_one_line(s3, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VITSWIN_CACHE", str(tmp_path))

    def error(*command):
        assert main(list(command)) == 1
        return capsys.readouterr().err

    assert "there is no such bucket" in error("predict", "s3://none/runs/x", "a.png")
    assert "no such object" in error("predict", "s3://bucket/runs/none", "a.png")
    assert "there is no such bucket" in error("train", "digits", "--workdir=s3://none/runs/x")
    assert "no run" in error("runs", "s3://bucket/nothing")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "the store does not answer"),
        ("AWS_ACCESS_KEY_ID", "", "no credentials are found"),
    ],
)
def test_a_store_that_cannot_be_asked_is_one_line_and_no_hang(s3, monkeypatch, name, value, reason):
    import s3fs

    monkeypatch.setenv(name, value)
    if not value:
        monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    s3fs.S3FileSystem.clear_instance_cache()
    began = time.monotonic()
    with pytest.raises(StoreError, match=reason):
        Store("s3://bucket/runs/x").write("a", b"")
    assert time.monotonic() - began < 60
    s3fs.S3FileSystem.clear_instance_cache()
