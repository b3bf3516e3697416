"""The files by which strangers judge a project are true to it."""

import re
from pathlib import Path

from vitswin_jax import __version__

ROOT = Path(__file__).parents[1]


def test_the_places_of_changes_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| change |") : text.index("## Rules")]
    places = [place for place in re.findall(r"`([\w/.*]+)`", table) if "x.py" not in place]
    assert len(places) > 5
    for place in places:
        assert any([*ROOT.glob(place), *(ROOT / "vitswin_jax").glob(place)]), place


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == __version__
