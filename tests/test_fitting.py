"""`fit` is the trainer of `vitswin train`: the same numbers, by objects instead of names."""

import doctest
import functools
import io
import json
import math

import jax
import numpy as np
import optax
import pytest
from PIL import Image
from safetensors.numpy import load_file

import vitswin_jax
from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import TrainTransform
from vitswin_jax.data.sources.open import open_source
from vitswin_jax.fitting import make_config as config_of
from vitswin_jax.train.optim.optimizers import make_tx
from vitswin_jax.trainer import train_and_evaluate


def arrays(split):
    """The digits of a split as (images, labels)."""
    source = open_source("digits", split=split)
    records = [source[i] for i in range(len(source))]
    images = [np.asarray(Image.open(io.BytesIO(record["image"]))) for record in records]
    return np.stack(images), np.array([record["label"] for record in records])


@pytest.fixture(scope="module")
def digits():
    """The digits as arrays, to train on and to test with."""
    return arrays("train"), arrays("test")


@pytest.fixture(scope="module")
def by_name(make_config, tmp_path_factory):
    """The workdir of a run of the recipe, by the trainer itself."""
    workdir = tmp_path_factory.mktemp("by_name")
    train_and_evaluate(make_config(), workdir)
    return workdir


def weights(workdir):
    return load_file(workdir / "model.safetensors")


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def rows(workdir):
    """The rows of a run, without what a clock says."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    clocks = ("time/", "images_per_second")
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith(clocks)}
        for line in lines
    ]


class Heard(vitswin_jax.Callback):
    """Keeps what it hears of."""

    def __init__(self):
        self.steps, self.evaluations, self.ends = [], [], []

    def on_step(self, step, metrics):
        self.steps.append((step, float(metrics["loss"])))

    def on_evaluation(self, step, numbers):
        self.evaluations.append((step, dict(numbers)))

    def on_end(self, fitted):
        self.ends.append(fitted)


@pytest.mark.long
def test_arrays_train_as_the_same_images_by_name_do(digits, make_config, by_name, tmp_path):
    """Bit for bit, with a loss, an augmentation and an optimizer that are the recipe's own."""
    train, test = digits
    config, heard, seen = make_config(), Heard(), []

    def optimizer(schedule):
        keys = {
            "weight_decay": config.optim.weight_decay,
            "max_grad_norm": config.optim.max_grad_norm,
        }
        return make_tx(schedule, name=config.optim.name, **keys)

    transform = TrainTransform(
        (16, 16),
        crop="shift",
        **{k: config.augment[k] for k in ("shift", "rotate", "zoom", "flip")},
    )

    class Rows:
        def log(self, step, numbers):
            seen.append(step)

        def close(self):
            seen.append("closed")

    fitted = vitswin_jax.fit(
        None,
        train,
        test=test,
        recipe=config,
        workdir=tmp_path / "run",
        loss=optax.softmax_cross_entropy,
        augment=transform,
        optimizer=optimizer,
        metrics={"mistakes": lambda logits, labels: (logits.argmax(-1) != labels).sum()},
        loggers=["tensorboard", Rows()],
        callbacks=[heard],
    )
    assert_same(weights(tmp_path / "run"), weights(by_name))
    ours, theirs = rows(tmp_path / "run"), rows(by_name)
    mistakes = [row.pop("test/mistakes") for row in ours if "test/mistakes" in row]
    assert ours == theirs
    assert mistakes == [
        round(450 * (1 - row["test/accuracy"])) for row in ours if "test/loss" in row
    ]
    assert [step for step, _ in heard.steps] == list(range(1, 9))
    windows = [row["train/loss"] for row in ours if "train/loss" in row]
    means = np.array([loss for _, loss in heard.steps]).reshape(-1, 2).mean(1)
    np.testing.assert_allclose(windows, means, rtol=1e-6)
    assert [step for step, _ in heard.evaluations] == [4, 8] and heard.ends == [fitted]
    assert seen == [row["step"] for row in theirs] + ["closed"]

    logits = jax.jit(fitted.model.apply)(
        fitted.variables,
        np.stack([fitted.preprocess(np.repeat(x[..., None], 3, -1)) for x in test[0]]),
    )
    assert fitted.test_accuracy == pytest.approx((logits.argmax(-1) == test[1]).mean())
    assert fitted.column("test/accuracy")[1][-1] == fitted.test_accuracy
    assert fitted.class_names == tuple("0123456789") and fitted.workdir == tmp_path / "run"
    with pytest.raises(UserError, match="python:data: was passed to"):
        open_source("python:data", split="test")


@pytest.mark.long
def test_what_a_callback_raises_reaches_the_caller_and_the_run_resumes(
    digits, make_config, by_name, tmp_path
):
    train, test = digits

    class Failing(Heard):
        def on_step(self, step, metrics):
            super().on_step(step, metrics)
            if step == 6:
                raise RuntimeError("mine")

    run = functools.partial(
        vitswin_jax.fit, None, train, test=test, recipe=make_config(), workdir=tmp_path
    )
    with pytest.raises(RuntimeError, match=r"^mine$"):
        run(callbacks=[Failing()])
    heard = Heard()
    run(callbacks=[heard])
    assert 1 < heard.steps[0][0] <= 6
    assert_same(weights(tmp_path), weights(by_name))
    assert rows(tmp_path) == rows(by_name)
    other = (255 - train[0], train[1])
    with pytest.raises(UserError, match="its training data changed"):
        vitswin_jax.fit(None, other, test=test, recipe=make_config(), workdir=tmp_path)


@pytest.mark.long
def test_without_a_workdir_a_callback_ends_the_run_and_optax_is_taken(digits, make_config):
    """Adam's own rate is its own; Adafactor's state has other shapes than the parameters."""
    for optimizer in (optax.adafactor(1e-3), optax.chain(optax.clip(1.0), optax.adam(1e-2))):
        fitted = vitswin_jax.fit(
            "vit",
            iter(list(zip(*digits[0], strict=True))[:80]),
            recipe=make_config(),
            epochs=4,
            batch_size=16,
            config={"run.log_steps": 1, "optim.freeze": (".*patch_embed.*",)},
            optimizer=optimizer,
            callbacks=[lambda step, numbers: step >= 4],
        )
        steps = [row["step"] for row in fitted.history if "test/loss" in row]
        assert steps[-1] < 16 and all("lr" not in row for row in fitted.history)
        assert fitted.workdir is None and not fitted.result.weights.exists()
        assert fitted.test_accuracy == fitted.history[-1]["test/accuracy"]
        assert all(math.isfinite(leaf.sum()) for leaf in jax.tree.leaves(fitted.variables))


def test_the_default_recipes_and_models(tmp_path):
    tiny = vitswin_jax.create_model("swin", img_size=16, embed_dim=8, depths=(1,), num_heads=(2,))
    config = config_of(tiny, recipe=None, init_from=None)
    assert config.model.embed_dim == 8 and config.model.num_classes is None
    assert config.optim.peak_lr == config_of("vit", recipe="folder", init_from=None).optim.peak_lr
    five = vitswin_jax.create_model("vit_tiny_patch16_224", num_classes=5, depth=1)
    assert config_of(five, recipe=None, init_from=None).model.num_classes == 5


@pytest.mark.long
def test_the_example_of_its_docstring_runs():
    tests = doctest.DocTestFinder(recurse=False).find(
        vitswin_jax.fit, "fit", globs={"vitswin_jax": vitswin_jax, "fit": vitswin_jax.fit}
    )
    (example,) = tests
    assert doctest.DocTestRunner().run(example).failed == 0 and example.examples


TWO = (np.zeros((8, 8, 8), np.uint8), np.arange(8) % 2)


@pytest.mark.parametrize(
    ("model", "data", "given", "line"),
    [
        ("vit_tiny_patch16_24", TWO, {}, "no model is called 'vit_tiny_patch16_24'"),
        (3, TWO, {}, "model: is int; it must be a name or a model of create_model"),
        (None, TWO, {}, "model is None; name a model"),
        (
            "vit",
            TWO,
            {"epochs": "many"},
            "optim.epochs needs a number, not 'many'; now it is 100.0",
        ),
        (
            "vit",
            TWO,
            {"config": {"optim.peak_rl": 1}},
            "optim.peak_rl: there is no such flag or key; did you mean --optim.peak_lr",
        ),
        ("vit", TWO, {"loggers": ["wandbb"]}, "loggers='wandbb' must be one of"),
        ("vit", TWO, {"callbacks": [3]}, "callbacks: int has no method on_step"),
        ("vit", TWO, {"callbacks": [Heard]}, r"callbacks: Heard is a class; pass Heard\(\)"),
        ("vit", TWO, {"loggers": [3]}, r"loggers: int has no log\(step, numbers\) and close"),
        (
            "vit",
            TWO,
            {"metrics": {"accuracy": len}},
            r"metrics\['accuracy'\] has a name that the run uses",
        ),
        ("vit", TWO, {"metrics": {"f1": 3}}, r"metrics\['f1'\]: is int, and must be a function"),
        ("vit", TWO, {"augment": 3}, "augment: is int, and must be a function"),
        ("vit", TWO, {"loss": "softmax"}, "loss: is str, and must be a function.*config"),
        ("vit", TWO, {"optimizer": "adam"}, "optimizer: is str; it must be an optax.Gradient"),
        ("vit", TWO, {"loss": lambda logits, targets: logits.sum()}, r"loss: returns float32 \(\)"),
        (
            None,
            TWO,
            {"recipe": "mim_digits:simmim,vit", "config": {}, "metrics": {"n": len}},
            "pretrain.method='simmim' reads no labels, so it takes no loss and no metrics",
        ),
        ("vit", "digits", {"test": TWO}, "test and class_names are for data that are objects"),
        ("vit", (TWO[0], TWO[1] + 1), {"class_names": ["a", "b"]}, "labels run from 1 to 2"),
        (
            "vit",
            (TWO[0] - 1.5, TWO[1]),
            {},
            r"images: is float64 from -1.5 to -1.5; it must be uint8",
        ),
        ("vit", 3, {}, r"data: is int; it must be \(images, labels\)"),
    ],
)
def test_misuse_is_one_line_before_anything_is_written(model, data, given, line, tmp_path):
    small = {"model.img_size": 8, "model.patch_size": 4, "model.depth": 1, "model.embed_dim": 8}
    small |= {"model.num_heads": 2, "data.batch_size": 8, "data.eval_batch_size": 8}
    given = {"config": small, **given}
    with pytest.raises(UserError, match=line) as raised:
        vitswin_jax.fit(model, data, workdir=tmp_path / "run", **given)
    assert len(str(raised.value)) < 400 and not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"metrics": {"f1": lambda logits, labels: logits[0]}},
            r"metrics\['f1'\]: returns float32 \(2,\)",
        ),
        ({"augment": lambda image, rng: image / 255}, r"data\[\d+\]: augment returns float64"),
    ],
)
def test_what_shows_only_in_the_run_is_one_line_too(given, line, tmp_path):
    tiny = vitswin_jax.create_model(
        "vit", img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2
    )
    with pytest.raises(UserError, match=line):
        vitswin_jax.fit(
            tiny, TWO, epochs=1, batch_size=8, config={"data.eval_batch_size": 8}, **given
        )
