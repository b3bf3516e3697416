"""Draws the pictures of concepts.md from arrays of the code itself: python docs/pictures/draw.py.

Writes them beside itself, or into the folder that is given. There are no words in them, only the
names of the code and the papers' letters, so that they serve every language.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import swin_pictures
import vit_pictures
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

STYLE = {"figure.dpi": 110}
PICTURES: dict[str, Callable[[], Figure]] = {
    "attention": vit_pictures.attention,
    "permutation": vit_pictures.permutation,
    "patches": vit_pictures.patches,
    "pipelines": vit_pictures.pipelines,
    "windows": swin_pictures.windows,
    "mask": swin_pictures.mask,
    "relative_index": swin_pictures.relative_index,
    "merging": swin_pictures.merging,
    "log_offsets": swin_pictures.log_offsets,
    "cost": vit_pictures.cost,
}


def write(name: str, folder: Path) -> Path:
    """Draws a picture of `PICTURES`; returns the path of its PNG, of at most 128 colours."""
    figure = PICTURES[name]()
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    plt.close(figure)
    path = folder / f"{name}.png"
    Image.fromarray(pixels).quantize(128).save(path, optimize=True)
    return path


def main(arguments: list[str]) -> None:
    """Draws all pictures."""
    mpl.use("Agg")
    mpl.rcParams.update(STYLE)
    folder = Path(arguments[0]) if arguments else Path(__file__).parent
    for name in PICTURES:
        path = write(name, folder)
        print(f"{path.name}  {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
