"""Pages that open without a network: one HTML file each, pictures included."""

from __future__ import annotations

import math
from pathlib import Path

import jinja2


def percent(fraction: float) -> str:
    """Returns "98.7 %" for 0.987, and a dash for NaN."""
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


def template(name: str) -> jinja2.Template:
    """Returns a template of this folder; a page fails where it lacks what it names."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["width"] = lambda x: f"{0 if math.isnan(x) else 100 * x:.1f}%"
    return environment.get_template(name)
