"""What the figures show, computed another way."""

import base64
import io

import numpy as np
from PIL import Image

from vitswin_jax.evaluate.evaluation import CalibrationBin
from vitswin_jax.report import figures


def svg(uri):
    kind, _, data = uri.partition(",")
    assert kind == "data:image/svg+xml;base64"
    text = base64.b64decode(data).decode()
    assert text.rstrip().endswith("</svg>")
    return text


def test_mosaic_keeps_each_map_whole():
    maps = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    picture = figures.mosaic(maps)
    assert picture.shape == (2 * 5 - 1, 3 * 6 - 1)
    for i in range(2):
        for j in range(3):
            cut = picture[i * 5 : i * 5 + 4, j * 6 : j * 6 + 5]
            np.testing.assert_array_equal(cut, maps[i, j])
    assert np.isnan(picture[4]).all()
    assert np.isnan(picture[:, 5]).all()


def test_similarities_equal_a_loop():
    embedding = np.random.default_rng(0).normal(size=(3, 4, 7)).astype(np.float32)
    maps = figures.cosine_similarities(embedding, at_most=16)[0]
    for i, j, h, w in np.ndindex(3, 4, 3, 4):
        a, b = embedding[i, j], embedding[h, w]
        want = a @ b / np.sqrt((a @ a) * (b @ b))
        np.testing.assert_allclose(maps[i, j, h, w], want, atol=1e-6)


def test_large_grids_show_evenly_spaced_positions():
    embedding = np.random.default_rng(0).normal(size=(9, 31, 4)).astype(np.float32)
    maps, rows, columns = figures.cosine_similarities(embedding, at_most=5)
    assert rows.tolist() == [0, 2, 4, 6, 8]
    assert columns.tolist() == [0, 8, 15, 22, 30]
    assert maps.shape == (5, 5, 9, 31)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            assert maps[i, j].argmax() == row * 31 + column


def test_zero_embeddings_are_no_error():
    svg(figures.position_similarity(np.zeros((2, 2, 4), np.float32)))


def test_figures_are_svg_and_the_same_each_time():
    maps = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    assert svg(figures.bias_maps(maps)) == svg(figures.bias_maps(maps))
    svg(figures.bias_maps(np.zeros((1, 48, 3, 3), np.float32)))
    svg(figures.confusion(np.arange(40 * 40).reshape(40, 40)))
    empty = CalibrationBin(0.0, 0.5, 0, np.nan, np.nan)
    svg(figures.reliability([empty, CalibrationBin(0.5, 1.0, 3, 0.7, 1.0)]))


def test_a_confusion_matrix_of_few_classes_has_names_and_counts():
    names = ("rose", "$tulip_", "a" * 60)
    drawn = figures.draw_confusion(np.array([[5, 0, 0], [0, 7, 12], [3, 0, 0]]), names)
    axes = drawn.axes[0]
    ticks = [label.get_text() for label in axes.get_yticklabels()]
    assert ticks == ["rose", "$tulip_", "a" * 23 + "…"]
    counts = {text.get_position(): text.get_text() for text in axes.texts}
    assert counts == {(0, 0): "5", (1, 1): "7", (2, 1): "12", (0, 2): "3"}
    many = figures.draw_confusion(np.eye(40, dtype=int), [str(i) for i in range(40)])
    assert not many.axes[0].texts


def test_letters_and_axes_follow_the_pages_dark_mode():
    drawn = svg(figures.reliability([CalibrationBin(0.5, 1.0, 3, 0.7, 1.0)]))
    assert "prefers-color-scheme:dark" in drawn
    assert "var(--ink)" in drawn
    assert "#000000" not in drawn
    assert ">confidence<" not in drawn  # letters are outlines, for a page may lack the font


def test_picture_is_lossless():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    data = base64.b64decode(figures.picture(image).partition(",")[2])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
