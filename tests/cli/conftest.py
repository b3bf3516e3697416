"""A small run on the digits: weights with metadata, and images of its classes."""

import jax
import numpy as np
import pytest
from drawn import draw

from vitswin_jax.cli import main
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.data.sources.open import open_source
from vitswin_jax.models.registry import create_model
from vitswin_jax.weights.save import save_pretrained


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="session")
def digits(data_dir):
    return open_source("digits", split="test", data_dir=data_dir)


@pytest.fixture(scope="session")
def vit():
    model = create_model(
        "vit", img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=10
    )
    return model, draw(model)


@pytest.fixture(scope="session")
def forward(vit):
    """Returns the logits of float images, compiled once."""
    model, variables = vit
    apply = jax.jit(lambda images: model.apply(variables, images, train=False))
    return lambda images: np.asarray(apply(images))


PREPROCESS = Preprocess(img_size=(16, 16), crop_mode="squash", crop_fraction=1.0)


@pytest.fixture
def workdir(tmp_path, vit, data_dir):
    model, variables = vit
    folder = tmp_path / "run"
    folder.mkdir()
    metadata = {
        "preprocess": PREPROCESS,
        "class_names": tuple("0123456789"),
        "provenance": {"dataset": "digits", "data_dir": str(data_dir), "test_split": "test"},
    }
    save_pretrained(folder, model, variables, metadata=metadata)
    return folder


@pytest.fixture
def vitswin(capsys):
    """Runs a command in this process; returns (exit status, standard output, standard error)."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
