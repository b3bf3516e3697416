"""Fonts for names: which file is taken, and what is drawn of letters that none has."""

import logging

import pytest

from vitswin_jax.report import fonts


@pytest.fixture
def system(monkeypatch):
    """Two fonts of a system: one with Chinese letters and Latin ones, one with Hangul only."""
    own = fonts.font_of("a")
    letters = {
        own: frozenset(map(ord, "abc…")),
        "wqy.ttc": frozenset(map(ord, "abc樱花")),
        "hangul.ttf": frozenset(map(ord, "벚꽃")),
    }
    monkeypatch.setattr(fonts, "_letters", letters.__getitem__)
    monkeypatch.setattr(fonts, "_of_system", lambda: ("wqy.ttc", "hangul.ttf"))
    fonts.font_of.cache_clear()
    fonts._say_missing.cache_clear()
    yield own
    fonts.font_of.cache_clear()


def test_the_font_has_the_letters(system):
    assert fonts.font_of("cab") == system
    assert fonts.font_of("a 樱花".replace(" ", "")) == "wqy.ttc"
    assert fonts.font_of("벚꽃") == "hangul.ttf"
    assert fonts.drawable("벚꽃") == "벚꽃"


def test_letters_that_no_font_has_are_escaped_and_said_once(system, caplog):
    with caplog.at_level(logging.WARNING):
        assert fonts.drawable("aさb") == "aU+3055b"
        assert fonts.drawable("か") == "U+304B"
    (record,) = caplog.records
    assert "install one" in record.getMessage()


def test_fonts_that_cannot_be_read_have_no_letters(tmp_path):
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    assert fonts._letters(str(tmp_path / "bad.ttf")) == frozenset()
    assert ord("é") in fonts._letters(fonts.font_of("é"))
