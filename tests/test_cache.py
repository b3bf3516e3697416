"""One place for what is downloaded and prepared."""

from pathlib import Path

from vitswin_jax.cache import cache_dir


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
