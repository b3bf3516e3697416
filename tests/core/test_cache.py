"""One place for what is downloaded and prepared."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kinds import mostly_long

from vitswin_jax.core.cache import JAX_DECIDES, cache_dir, keep_compiled_programs


def test_own_variable_then_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("VITSWIN_CACHE", raising=False)
    assert cache_dir() == tmp_path / "user" / "vitswin_jax"
    monkeypatch.setenv("VITSWIN_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.setenv("VITSWIN_CACHE", "~/own")
    assert cache_dir() == Path("~/own").expanduser()
    monkeypatch.delenv("VITSWIN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path("~/.cache/vitswin_jax").expanduser()


COMPILE = """
import {first}
from vitswin_jax.core.cache import keep_compiled_programs
keep_compiled_programs()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append("cache_hits" in name))
jax.jit(lambda x: x * 2.0 + 1.0)(1.0)
print(sum(hits))
"""


@pytest.mark.parametrize("first", mostly_long(["sys", "jax"], ["jax"]))
def test_a_second_process_finds_what_the_first_compiled(tmp_path, first):
    """Whether JAX was imported before or not."""
    environment = {k: v for k, v in os.environ.items() if k not in JAX_DECIDES}
    environment |= {"VITSWIN_CACHE": str(tmp_path)}

    def hits():
        command = [sys.executable, "-c", COMPILE.format(first=first)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        return int(done.stdout)

    assert hits() == 0
    assert any((tmp_path / "compiled").iterdir())
    assert hits() > 0


@pytest.mark.parametrize("name", JAX_DECIDES)
def test_jaxs_own_settings_go_before(name, tmp_path, monkeypatch):
    for each in JAX_DECIDES:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "false")
    monkeypatch.setenv("VITSWIN_CACHE", str(tmp_path))
    keep_compiled_programs()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_no_cache(tmp_path, monkeypatch):
    for each in JAX_DECIDES:
        monkeypatch.delenv(each, raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("VITSWIN_CACHE", str(tmp_path / "file"))
    keep_compiled_programs()
    assert not any(each in os.environ for each in JAX_DECIDES)
