"""Contact sheets: where each picture lies, and that text stays below its own."""

import numpy as np
from PIL import Image

from vitswin_jax.report.sheet import Picture, thumbnail, write_sheet


def test_sizes_of_thumbnails():
    assert thumbnail(np.zeros((400, 800, 3), np.uint8)).shape == (80, 160, 3)
    assert thumbnail(np.zeros((1, 5000, 3), np.uint8)).shape == (1, 160, 3)
    small = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(thumbnail(small), small.repeat(80, 0).repeat(80, 1))


def test_pictures_in_rows(tmp_path):
    """Each picture has its own colour; nothing else has any."""
    pictures = [
        Picture(np.full((80, 160, 3), (200, 10 * i, 0), np.uint8), ("W" * 60, f"{i}"))
        for i in range(10)
    ]
    path = write_sheet(tmp_path / "a.png", pictures)
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image)
    corners = []
    for i in range(10):
        rows, columns = np.nonzero((pixels == (200, 10 * i, 0)).all(-1))
        assert len(rows) == 80 * 160
        assert (np.ptp(rows), np.ptp(columns)) == (79, 159)
        corners.append((rows.min(), columns.min()))
    assert len({row for row, _ in corners[:8]}) == 1  # eight a row
    assert [column for _, column in corners[8:]] == [column for _, column in corners[:2]]
    assert corners[8][0] > corners[0][0] + 160
    ink = np.nonzero((pixels < 128).all(-1))[1]  # text, which is nowhere between the columns
    for left in (column for _, column in corners[:7]):
        assert not ((ink >= left + 160) & (ink < left + 172)).any()
    assert len(ink)
