"""The report: self-contained, escaped, and showing what the run and the evaluation say."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.nn.scan import stack_blocks
from vitswin_jax.nn.windows import relative_position_index
from vitswin_jax.report import pages as report


class Page(HTMLParser):
    """Collects a page's tags, addresses, text and pictures."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.addresses, self.text, self.pictures = [], [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.addresses += [attrs[name] for name in ("src", "href", "srcset") if name in attrs]
        if attrs.get("src", "").startswith("data:image/png"):
            data = base64.b64decode(attrs["src"].partition(",")[2])
            self.pictures.append((np.asarray(Image.open(io.BytesIO(data))), attrs["title"]))

    def handle_data(self, data):
        self.text += data


PREPROCESS = Preprocess(img_size=(16, 24), crop_mode="squash", crop_fraction=1.0)


def write(path, model_and_params, source, evaluation, **kwargs):
    model, params = model_and_params
    written = report.write_report(
        path,
        title="a <run>",
        model=model,
        params=params,
        evaluation=evaluation,
        source=source,
        preprocess=PREPROCESS,
        **kwargs,
    )
    return Page(written.read_text(encoding="utf-8"))


def test_page_is_self_contained_and_says_what_was_found(
    tmp_path, model_and_params, source, evaluation
):
    page = write(tmp_path / "report.html", model_and_params, source, evaluation)
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not {"script", "link", "iframe", "b"} & set(page.tags)
    assert "@import" not in page.text
    assert "url(" not in page.text
    assert "a <run>" in page.text
    assert re.search(r"75\.0 %\s+test accuracy|test accuracy\s*75\.0 %", page.text)
    assert "3 of 12" in page.text
    for name in source.class_names:
        assert name in page.text
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_worst_mistakes_come_first_as_the_model_sees_them(
    tmp_path, model_and_params, source, evaluation
):
    page = write(tmp_path / "report.html", model_and_params, source, evaluation)
    assert [int(image.mean()) for image, _ in page.pictures] == [5, 2, 9]
    assert all(image.shape == (16, 24, 3) for image, _ in page.pictures)
    assert [title for _, title in page.pictures] == [source.describe(i) for i in (5, 2, 9)]
    assert "3 of 3 errors" in page.text


def test_position_figures_are_the_familys(tmp_path, model_and_params, source, evaluation):
    page = write(tmp_path / "report.html", model_and_params, source, evaluation)
    family = type(model_and_params[0]).__name__
    assert ("Position embeddings" in page.text) == (family == "ViT")
    assert ("Relative position biases" in page.text) == (family == "Swin")
    assert ("Stage 1" in page.text) == (family == "Swin")


def test_scanned_parameters_give_the_same_page(tmp_path, model_and_params, source, evaluation):
    model, params = model_and_params
    write(tmp_path / "loop", model_and_params, source, evaluation)
    scanned = model.clone(scan=True), stack_blocks(params)
    write(tmp_path / "scan", scanned, source, evaluation)
    assert (tmp_path / "loop").read_bytes() == (tmp_path / "scan").read_bytes()


@pytest.mark.parametrize("model_and_params", ["swin"], indirect=True)
def test_bias_maps_show_keys_where_they_lie(model_and_params):
    """In the map of a head, the place (dy, dx) from the centre has the bias of that key."""
    model, params = model_and_params
    maps = report._bias_maps(model.geometry(), params)[0]
    height, width = window = (2, 4)
    assert maps.shape == (2, 2, 2 * height - 1, 2 * width - 1)
    table = params["stage_0"]["block_1"]["attn"]["relative_position_bias_table"]
    bias = table[relative_position_index(window)]  # query, key, heads
    places = [(y, x) for y in range(height) for x in range(width)]
    for q, (y, x) in enumerate(places):
        for k, (key_y, key_x) in enumerate(places):
            shown = maps[1, :, height - 1 + key_y - y, width - 1 + key_x - x]
            np.testing.assert_array_equal(shown, bias[q, k])


@pytest.mark.parametrize("model_and_params", ["vit"], indirect=True)
def test_a_workdir_adds_curves_and_configuration(tmp_path, model_and_params, source, evaluation):
    rows = [{"step": i, "train/loss": 1 / (i + 1), "note": "text"} for i in range(5)]
    lines = [json.dumps(row) for row in [*rows, {"step": 4, "test/loss": 0.5}]]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 5, "train/lo']))
    (tmp_path / "config.json").write_text('{"optim": {"peak_lr": 0.125}, "seed": 7}')
    page = write(
        tmp_path / "report.html", model_and_params, source, evaluation,
        workdir=tmp_path, command="python train.py --x='<y>'",
    )  # fmt: skip
    assert "Training" in page.text
    assert "optim.peak_lr" in page.text
    assert "0.125" in page.text
    assert "python train.py --x='<y>'" in page.text


@pytest.mark.parametrize("model_and_params", ["vit"], indirect=True)
def test_what_it_started_from_and_another_run_are_shown(
    tmp_path, model_and_params, source, evaluation
):
    for name, accuracy in (("this", 0.75), ("other", 0.5)):
        (tmp_path / name).mkdir()
        row = {"step": 9, "test/accuracy": accuracy, "test/loss": 1.0}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(row))
    origin = {"init_from": "<w>.npz", "sha256": "ab" * 32, "adapted": ["the head is fresh (zero)"]}
    page = write(
        tmp_path / "report.html", model_and_params, source, evaluation,
        workdir=tmp_path / "this", origin=origin, compare_to=tmp_path / "other",
    )  # fmt: skip
    for text in ("Started from", "<w>.npz", "ab" * 32, "the head is fresh (zero)"):
        assert text in page.text
    assert "Both after 9 steps" in page.text and "this (this one)" in page.text
    assert "50.0 %" in page.text


@pytest.mark.parametrize("model_and_params", ["vit"], indirect=True)
def test_no_mistakes(tmp_path, model_and_params, source, evaluation):
    from vitswin_jax.evaluate.evaluation import summarize

    logits = np.eye(3, dtype=np.float32)[evaluation.labels]
    right = summarize(logits, evaluation.labels, evaluation.class_names)
    page = write(tmp_path / "report.html", model_and_params, source, right)
    assert "every image was named rightly" in page.text
    assert page.pictures == []


def test_metrics_of_a_resumed_run(tmp_path):
    """Steps are in order, the last word on a step counts, what is no row is passed over."""
    assert report.read_metrics(tmp_path) == {}
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "lr": 1.0}\n{"step": 3, "lr": 9.0}\n{"step": 4, "l\n{"step": 2, "lr": 2.0}\n'
        '{"step": 3, "lr": 3.0, "test/accuracy": 0.5}\n{"step": 3, "note": "x"}\n'
    )
    assert report.read_metrics(tmp_path) == {
        "lr": ((1, 2, 3), (1.0, 2.0, 3.0)),
        "test/accuracy": ((3,), (0.5,)),
    }


@pytest.mark.parametrize("model_and_params", ["vit"], indirect=True)
def test_misfits_are_one_line(tmp_path, model_and_params, source, evaluation):
    from vitswin_jax.evaluate.evaluation import summarize

    half = summarize(evaluation.logits[:6], evaluation.labels[:6], evaluation.class_names)
    with pytest.raises(UserError, match=r"has 6 examples, .* has 12"):
        write(tmp_path / "report.html", model_and_params, source, half)
    turned = summarize(evaluation.logits[::-1], evaluation.labels[::-1], evaluation.class_names)
    with pytest.raises(UserError, match="class has changed since the evaluation"):
        write(tmp_path / "report.html", model_and_params, source, turned)
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "no" / "report.html", model_and_params, source, evaluation)


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.98666, "98.7 %"), (1.0, "100.0 %"), (np.nan, "–")]
)
def test_percent(fraction, text):
    assert report.percent(fraction) == text
