"""Pages that open without a network: one HTML file each, pictures included."""

from __future__ import annotations

import math
from pathlib import Path

import jinja2

from vitswin_jax.core.terminal import printable


def percent(fraction: float) -> str:
    """Returns "98.7 %" for 0.987, and a dash for NaN."""
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


def _shown(value: object) -> object:
    """Returns a text that a page names as one that can be printed: names may be no UTF-8."""
    return printable(value) if type(value) is str else value


def template(name: str) -> jinja2.Template:
    """Returns a template of this folder; a page fails where it lacks what it names."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["width"] = lambda x: f"{0 if math.isnan(x) else 100 * x:.1f}%"
    return environment.get_template(name)
