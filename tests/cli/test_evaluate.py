"""`vitswin evaluate`: exact numbers over the split, and the report."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from vitswin_jax.cli.evaluate import match_classes
from vitswin_jax.pretrained import load_metadata, save_pretrained


def by_hand(forward, source):
    """Top-1 and top-5 by Pillow, the model on all images at once, and sorting."""
    records = [source[i] for i in range(len(source))]
    images = []
    for record in records:
        with Image.open(io.BytesIO(record["image"])) as image:
            images.append(np.asarray(image.convert("RGB").resize((16, 16), 3), np.float32))
    logits = forward(np.stack(images) / 127.5 - 1)
    order = np.argsort(-logits, -1)
    labels = np.array([record["label"] for record in records])[:, None]
    return (order[:, :1] == labels).any(-1).mean(), (order[:, :5] == labels).any(-1).mean()


def test_a_workdir_knows_its_dataset(vitswin, workdir, forward, digits):
    status, out, err = vitswin("evaluate", workdir, "--batch-size", 64)  # 450 = 7 * 64 + 2
    assert (status, err) == (0, "")
    top1, top5 = by_hand(forward, digits)
    lines = out.splitlines()
    assert lines[0] == "digits:test, 450 images"
    assert lines[1].split() == [
        "top-1",
        f"{100 * top1:.2f}",
        "%",
        f"{round(450 * (1 - top1))}",
        "errors",
    ]
    assert lines[2].split() == ["top-5", f"{100 * top5:.2f}", "%"]
    assert lines[-1] == f"report: {workdir / 'report.html'}"
    page = (workdir / "report.html").read_text()
    assert f"{100 * top1:.1f} %" in page
    assert "<h1>run</h1>" in page


def test_a_part_of_a_split_into_a_file(vitswin, workdir, tmp_path):
    weights = (workdir / "model.safetensors").rename(tmp_path / "w.safetensors")
    status, out, _ = vitswin(
        "evaluate", weights, "--split", "test[:10]", "--output", tmp_path / "r.html"
    )
    assert status == 0
    assert out.startswith("digits:test[:10], 10 images\n")
    assert (tmp_path / "r.html").exists()


def test_a_weights_file_alone_gets_no_report(vitswin, workdir):
    status, out, _ = vitswin(
        "evaluate", workdir / "model.safetensors", "--split", "test[:10]", "--batch-size", 10
    )
    assert status == 0
    assert "report:" not in out
    assert [path.name for path in workdir.iterdir()] == ["model.safetensors"]


def test_the_published_accuracy_stands_beside_the_measured(vitswin, workdir, vit):
    metadata = load_metadata(workdir)
    published = {"expected_top1": 81.2, "expected_top1_by": "somebody/code:README.md"}
    provenance = {**metadata.provenance, **published}
    save_pretrained(workdir, *vit, metadata=dataclasses.replace(metadata, provenance=provenance))
    _, out, _ = vitswin("evaluate", workdir / "model.safetensors", "--split", "test[:10]")
    assert "published: top-1 81.20 % on ImageNet-1k's validation set (somebody/code:" in out


@pytest.fixture
def folder(tmp_path, digits):
    """Digits as a folder whose classes sort in another order: "c0-9", "c1-8", ..."""
    root = tmp_path / "folder"
    for i in range(60):
        record = digits[i]
        place = root / "test" / f"c{9 - record['label']}-{record['label']}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:03}.png").write_bytes(record["image"])
    return root


def renamed(workdir, vit, *, names):
    model, variables = vit
    save_pretrained(
        workdir,
        model,
        variables,
        metadata={"class_names": names, "preprocess": load_metadata(workdir).preprocess},
    )


def test_classes_are_matched_by_name(vitswin, workdir, vit, forward, folder):
    names = tuple(f"c{9 - label}-{label}" for label in range(10))
    renamed(workdir, vit, names=names)
    status, out, err = vitswin("evaluate", workdir, folder)
    assert (status, err) == (0, "")

    class Part:
        def __len__(self):
            return 60

        def __getitem__(self, i):
            path = sorted(folder.rglob("*.png"), key=lambda path: path.name)[i]
            return {"image": path.read_bytes(), "label": names.index(path.parent.name)}

    top1, _ = by_hand(forward, Part())
    assert out.splitlines()[1].split()[1] == f"{100 * top1:.2f}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}"], "has 10 classes, the weights know 10; not in both: 0, 1, 2"),
        (["digist"], "digist"),
        (["--split", "validaton"], "no split 'validaton'"),
        (["--output", "{folder}/no/r.html"], "cannot write"),
        (["--batch-size", "0"], "batch_size=0"),
    ],
)
def test_mistakes_are_one_line(vitswin, workdir, folder, arguments, message):
    status, _, err = vitswin("evaluate", workdir, *(a.format(folder=folder) for a in arguments))
    assert status == 1
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_weights_that_name_no_dataset(vitswin, workdir, vit):
    renamed(workdir, vit, names=tuple("0123456789"))
    status, out, err = vitswin("evaluate", workdir)
    assert (status, out) == (1, "")
    assert "name a DATASET to evaluate on" in err


def test_match_classes():
    class Source:
        name = "s"
        class_names = ("a", "b", "c")

    assert match_classes(None, Source()) is None
    assert match_classes(("a", "b", "c"), Source()) is None
    assert match_classes(("c", "a", "b"), Source()) == [1, 2, 0]
