"""timm's models by their names, from goldens/write_timm_names.py."""

import json
from pathlib import Path

from vitswin_jax.core.types import with_tuples

_READ = json.loads((Path(__file__).parent / "goldens/models/timm_variants.json").read_text())
MODELS = {
    name: with_tuples(row if "family" in row else _READ["defaults"] | row)
    for name, row in _READ["models"].items()
}
"""Name -> the fields of a model that one of our families computes."""

OTHERS = _READ["others"]
"""The names of models of the same files of timm that none computes -> what they have besides."""
