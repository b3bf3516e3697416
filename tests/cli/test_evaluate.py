"""`vitswin evaluate`: exact numbers over the split, and the report."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from applied import apply
from flax.traverse_util import unflatten_dict
from PIL import Image

from vitswin_jax.cli import scores
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.data.sources.open import open_source
from vitswin_jax.evaluate.probes import Features, knn_accuracies
from vitswin_jax.models.registry import create_model
from vitswin_jax.weights.load import load_metadata, load_pretrained
from vitswin_jax.weights.published import synsets
from vitswin_jax.weights.save import save_pretrained
from vitswin_jax.weights.shapes import parameter_shapes


def pixels(records):
    """The model's input: resized by Pillow, in [-1, 1]."""
    images = []
    for record in records:
        with Image.open(io.BytesIO(record["image"])) as image:
            images.append(np.asarray(image.convert("RGB").resize((16, 16), 3), np.float32))
    return np.stack(images) / 127.5 - 1


def by_hand(forward, source):
    """Top-1 and top-5 by Pillow, the model on all images at once, and sorting."""
    records = [source[i] for i in range(len(source))]
    logits = forward(pixels(records))
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
    assert lines[-1] == f"report: {workdir / 'evaluation-digits-test.html'}"
    page = (workdir / "evaluation-digits-test.html").read_text()
    assert f"{100 * top1:.1f} %" in page
    assert "<h1>run on digits:test</h1>" in page


@pytest.mark.long
def test_each_evaluation_has_a_page_of_its_own(vitswin, workdir):
    """And none of them is the run's report."""
    (workdir / "report.html").write_text("the run's own")
    for split in ("test[:10]", "train[:10]", "test[:10]"):
        assert vitswin("evaluate", workdir, "--split", split, "--batch-size", 10)[0] == 0
    assert sorted(path.name for path in workdir.glob("*.html")) == [
        "evaluation-digits-test-10-.html",
        "evaluation-digits-train-10-.html",
        "report.html",
    ]
    output = ["--output", workdir / ".." / workdir.name / "report.html"]
    status, _, err = vitswin("evaluate", workdir, "--split", "test[:10]", *output)
    assert status == 1 and "is the run's own report; give another name" in err
    assert (workdir / "report.html").read_text() == "the run's own"


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


@pytest.mark.long
def test_an_accuracy_is_judged_on_imagenets_classes(vitswin, tmp_path, digits):
    """A model that names nothing rightly, on 1,000 classes of one image each."""
    root = tmp_path / "images"
    for i in range(1000):
        (root / "test" / f"{i:04}").mkdir(parents=True)
        (root / "test" / f"{i:04}" / "a.png").write_bytes(digits[i % 10]["image"])
    fields = {"img_size": 16, "patch_size": 8, "embed_dim": 4, "depth": 1, "num_heads": 1}
    model = create_model("vit", num_classes=1000, **fields)
    shapes = parameter_shapes(model).items()
    flat = {name: np.zeros(shape, np.float32) for name, shape in shapes}
    metadata = {
        "preprocess": Preprocess(img_size=(16, 16), crop_fraction=0.5),
        "provenance": {
            "published": "deit/deit_tiny_patch16_224-a1311bcf",
            "expected_top1": 72.2,
            "expected_top1_by": "somebody",
        },
    }
    path = tmp_path / "w.safetensors"
    save_pretrained(path, model, {"params": unflatten_dict(flat, sep="/")}, metadata=metadata)
    status, out, _ = vitswin("evaluate", path, root)
    assert status == 0
    *_, published, verdict = out.splitlines()
    assert published.startswith("published: top-1 72.20 %")
    assert verdict.startswith("lower by 72.10 points; 1,000 of its 50,000 images explain 2.91")
    assert "img_size is (16, 16) here and (224, 224) there" in verdict
    assert "crop_fraction is 0.5 here and 0.875 there" in verdict


@pytest.mark.long
def test_json_and_figures(vitswin, workdir, forward, digits, tmp_path):
    folder = tmp_path / "more" / "figures"
    status, out, err = vitswin("evaluate", workdir, "--json", "--figures", folder)
    assert (status, err) == (0, "")
    found = json.loads(out)
    top1, top5 = by_hand(forward, digits)
    assert (found["dataset"], found["images"]) == ("digits:test", 450)
    assert (found["top1"], found["top5"]) == pytest.approx((top1, top5))
    assert np.sum(found["confusion"]) == 450
    assert sum(row["images"] for row in found["classes"]) == 450
    assert sum(row["examples"] for row in found["calibration"]) == 450
    for name in ("reliability.png", "confusion.png", "mistakes.png"):
        with Image.open(folder / name) as image:
            assert image.format == "PNG"
            assert len(np.unique(np.asarray(image))) > 2


@pytest.mark.long
def test_probes_of_features(vitswin, workdir, vit, tmp_path):
    arguments = ["--knn", "--linear-probe", "--few-shot", "1,5"]
    arguments += ["--train-split", "train[:100]", "--split", "test[:80]"]
    status, out, err = vitswin("evaluate", workdir, *arguments)
    assert (status, err) == (0, "")
    title, train, _, *lines = out.splitlines()
    assert title == "digits:test[:80], 80 images, by 16 features"
    assert train == "learned from digits:train[:100], 100 images"
    # A file without the head has the same features.
    model, variables = vit
    params = {name: value for name, value in variables["params"].items() if name != "head"}
    metadata = load_metadata(workdir)
    headless = model.clone(num_classes=0)
    save_pretrained(
        tmp_path / "a", headless, {"params": params}, metadata={"preprocess": metadata.preprocess}
    )
    data_dir = metadata.provenance["data_dir"]
    bare = ["evaluate", tmp_path / "a", "digits", "--data-dir", data_dir]
    status, out, err = vitswin(*bare, *arguments, "--json")
    assert (status, err) == (0, "")
    rows = json.loads(out)["probes"]
    assert [row["probe"] for row in rows] == 4 * ["neighbours"] + ["linear"] + 2 * ["few-shot"]
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(row["probe"])
        assert f" {100 * row['top1']:.2f} %" in line
    # By hand: all images at once through the model, and its features to one of the probes.
    sources = [
        open_source("digits", split=split, data_dir=data_dir)
        for split in ("train[:100]", "test[:80]")
    ]
    records = [source[i] for source in sources for i in range(len(source))]
    labels = np.array([record["label"] for record in records])
    apply = jax.jit(lambda images: model.apply(variables, images, method="features"))
    x = np.asarray(apply(pixels(records)))
    features = Features(x[:100], labels[:100]), Features(x[100:], labels[100:])
    assert rows[1]["top1"] == pytest.approx(knn_accuracies(*features, num_classes=10)[10])


def test_a_headless_file_has_no_accuracy(vitswin, tmp_path, vit):
    model, variables = vit
    params = {name: value for name, value in variables["params"].items() if name != "head"}
    save_pretrained(tmp_path / "a", model.clone(num_classes=0), {"params": params})
    status, _, err = vitswin("evaluate", tmp_path / "a", "digits", "--data-dir", tmp_path)
    assert (status, err.count("\n")) == (1, 1)
    assert "the model has no head; --knn, --linear-probe and --few-shot" in err


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


@pytest.fixture
def imagenet(tmp_path):
    """Weights with ImageNet's outputs that call everything class 5, "electric ray"."""
    fields = {"img_size": 16, "patch_size": 8, "embed_dim": 4, "depth": 1, "num_heads": 1}
    model = create_model("vit", num_classes=1000, **fields)
    shapes = parameter_shapes(model).items()
    flat = {name: np.zeros(shape, np.float32) for name, shape in shapes}
    flat["head/bias"][5] = 1
    images = Preprocess(img_size=(16, 16), crop_mode="squash", crop_fraction=1.0)
    metadata = {"preprocess": images}
    path = tmp_path / "imagenet.safetensors"
    save_pretrained(path, model, {"params": unflatten_dict(flat, sep="/")}, metadata=metadata)
    return path


def write_images(root, names, digits):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(digits[i]["image"])
    return root


def test_the_folders_of_imagenets_relatives(vitswin, imagenet, digits, tmp_path):
    """As V2's (numbers), as A's and R's (some synsets), and with ReaL's labels."""
    v2 = [f"{number}/{number}.jpeg" for number in (0, 1, 10, 2, 5, 999)]
    _, out, _ = vitswin(
        "evaluate", imagenet, write_images(tmp_path / "v2", v2, digits), "--split", "all"
    )
    assert "class numbers, as ImageNet-V2's are; scored among the 6 of 1,000" in out
    assert " 16.67 %  5 errors" in out
    a = [f"{synsets()[number]}/x.jpg" for number in (5, 5, 207)]
    a[1] = a[1].replace("x", "y")
    status, out, _ = vitswin(
        "evaluate", imagenet, write_images(tmp_path / "a", a, digits), "--split", "all"
    )
    assert " 66.67 %  1 errors" in out and "golden retriever" in out
    val = [f"val/{synsets()[7]}/ILSVRC2012_val_{number:08}.JPEG" for number in (1, 2, 3)]
    root = write_images(tmp_path / "val", val, digits)
    real = [[7, 5], [], [8]] + 49_997 * [[]]
    (tmp_path / "real.json").write_text(json.dumps(real))
    report = ["--real", tmp_path / "real.json", "--output", tmp_path / "r.html"]
    status, out, err = vitswin("evaluate", imagenet, root, "--split", "val", *report)
    assert (status, err) == (0, "")
    assert out.startswith(
        f"{root}:val with ReaL's labels, 2 images\nright is any of an image's labels"
    )
    assert " 50.00 %  1 errors" in out
    assert "hen" in (tmp_path / "r.html").read_text()  # class 8, the mistake's
    status, _, err = vitswin(
        "evaluate", imagenet, root, "--split", "val", "--real", tmp_path / "no"
    )
    assert (status, err.count("\n")) == (1, 1) and "no: " in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}"], "has 10 classes, the weights 10; not in both are 0, 1, 2"),
        (["digist"], "digist"),
        (["--split", "validaton"], "no split 'validaton'"),
        (["--output", "{folder}/no/r.html"], "cannot write"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--output", "{folder}"], "it is a folder"),
        (["--figures", "{file}/y"], "cannot write"),
        (["--knn", "--train-split", "test"], "would be tested on the images that they learn from"),
        (["--knn", "--figures", "{folder}"], "the probes only print"),
        (["--train-split", "train"], "add one"),
        (["--knn", "--real", "{folder}"], "the probes only print"),
        (["--real", "{file}"], "is not UTF-8"),
    ],
)
def test_mistakes_are_one_line(vitswin, workdir, folder, arguments, message):
    status, _, err = vitswin(
        "evaluate",
        workdir,
        *(a.format(folder=folder, file=workdir / "model.safetensors") for a in arguments),
    )
    assert status == 1
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_weights_that_name_no_dataset(vitswin, workdir, vit):
    renamed(workdir, vit, names=tuple("0123456789"))
    status, out, err = vitswin("evaluate", workdir)
    assert (status, out) == (1, "")
    assert "name a DATASET to evaluate on" in err


def test_another_number_of_classes_is_known_before_the_work(vitswin, workdir, vit, folder):
    save_pretrained(workdir, *vit, metadata={"preprocess": load_metadata(workdir).preprocess})
    for path in list((folder / "test").iterdir())[:3]:
        path.rename(folder.parent / path.name)
    status, out, err = vitswin("evaluate", workdir, folder)
    assert (status, out) == (1, "")
    assert "has 7 classes, but the weights have 10" in err


@pytest.mark.long
def test_probabilities_are_averaged_over_sizes_and_mirrors(vitswin, workdir, digits):
    args = ("evaluate", workdir, "--batch-size", 90, "--img-sizes", "16,8x12", "--flip", "--json")
    status, out, err = vitswin(*args)
    assert (status, err) == (0, "")
    found = json.loads(out)
    records = [digits[i] for i in range(len(digits))]
    labels = np.array([record["label"] for record in records])
    probabilities = []
    for size in ((16, 16), (8, 12)):
        model, variables = load_pretrained(workdir, img_size=size)
        preprocess = dataclasses.replace(load_metadata(workdir).preprocess, img_size=size)
        images = np.stack([preprocess(record["image"]) for record in records])
        for each in (images, images[:, :, ::-1]):
            logits = apply(model, variables, each)
            probabilities.append(np.asarray(jax.nn.softmax(logits), np.float64))
    mean = np.mean(probabilities, 0)
    assert found["top1"] == (mean.argmax(-1) == labels).mean()
    np.testing.assert_allclose(
        found["loss"], -np.log(mean[np.arange(len(labels)), labels]).mean(), rtol=1e-4
    )
    rows = found["averaged"]
    assert [row["name"] for row in rows] == ["16x16", "16x16, mirrored", "8x12", "8x12, mirrored"]
    tops = [(each.argmax(-1) == labels).mean() for each in probabilities]
    assert [row["top1"] for row in rows] == tops


def test_at_one_size_all_is_of_the_weights_at_that_size(vitswin, workdir, monkeypatch, tmp_path):
    """The page, too, and no comparison with an accuracy that was published for another size."""
    seen = []
    written = scores.write_page
    monkeypatch.setattr(
        scores,
        "write_page",
        lambda *args, **kept: seen.append(args[2]) or written(*args, **kept),
    )
    page = tmp_path / "at8.html"
    status, _, err = vitswin("evaluate", workdir, "--img-sizes", "8", "--output", page)
    assert (status, err) == (0, "")
    assert [opened.preprocess.img_size for opened in seen] == [(8, 8)]


def test_a_size_that_does_not_fit_is_one_line_with_those_that_do(vitswin, workdir):
    status, _, err = vitswin("evaluate", workdir, "--img-sizes", "16,18")
    assert status == 1
    assert "img_size=18x18 is no multiple of patch_size=4x4, as 16x16" in err
    status, _, err = vitswin("evaluate", workdir, "--img-sizes", "16", "--knn")
    assert "leave them out for probes" in err
