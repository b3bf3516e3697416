"""What a run without labels says of itself: its loss, what its features are worth, its pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Key, UInt8
from ml_collections import ConfigDict

from vitswin_jax.core.types import Batch, Params
from vitswin_jax.evaluate.evaluation import collect
from vitswin_jax.evaluate.probes import Features, check_features, knn_accuracies, linear_probe
from vitswin_jax.models.masked import MaskedModel, Reconstruction
from vitswin_jax.nn.batch import Triple, normalize
from vitswin_jax.report.reconstruction import Pictures, write_pretraining_report
from vitswin_jax.train.hosts.join import raising_together
from vitswin_jax.train.keep.workdir import REPORT
from vitswin_jax.train.run.prepare import Run
from vitswin_jax.train.sharding import shard_batch
from vitswin_jax.train.step import Metrics, compile_for_hosts
from vitswin_jax.weights.pretrained import WEIGHTS, save_pretrained

NEIGHBOURS = 20
_PICTURES = 8
_MASK_SEED = 0


@dataclass(frozen=True)
class PretrainingResult:
    """What a finished run without labels says of itself."""

    name: str
    method: str
    test_loss: float
    test_images: int
    weights: Path
    report: Path

    def __str__(self) -> str:
        loss = f"{self.name}  {self.method}  test loss {self.test_loss:.4f}"
        return f"{loss} ({self.test_images} images)  report: {self.report}"


@dataclass(frozen=True)
class Predict:
    """The compiled functions of parameters and this host's rows of a batch."""

    sums: Callable[[Params, Batch], Metrics]
    features: Callable[[Params, Batch], Metrics]


def reconstruct(
    params: Params, batch: dict[str, Array], *, model: MaskedModel, mean: Triple, std: Triple
) -> Reconstruction:
    """Fills in a batch of evaluation; an image's mask is its own each time, in whatever batch."""
    images = normalize(batch["image"], mean=mean, std=std)
    masks = jax.vmap(lambda key: model.draw(key, 1)[0])(_image_keys(batch["image"]))
    return model.apply({"params": params}, images, masks, train=False)


def _image_keys(images: UInt8[Array, "b h w c"]) -> Key[Array, " b"]:
    """Returns a random key of each image, a function of its pixels."""
    key = jax.random.key(_MASK_SEED)
    factors = jax.random.bits(key, (1, *images.shape[1:]), jnp.uint32)
    sums = (images * factors).sum((1, 2, 3), dtype=jnp.uint32)  # modulo 2**32
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(sums)


def _sums(params: Params, batch: dict[str, Array], **how: Any) -> Metrics:
    loss, mask = reconstruct(params, batch, **how).loss, batch["mask"]
    return {"loss": (loss * mask).sum(), "count": mask.sum()}


def _features(
    params: Params, batch: dict[str, Array], *, model: MaskedModel, mean: Triple, std: Triple
) -> Metrics:
    images = normalize(batch["image"], mean=mean, std=std)
    features = model.apply({"params": params}, images, method="features")
    return {"logits": features, "label": batch["label"], "mask": batch["mask"]}


def make_predict(run: Run, param_shardings: Params) -> Predict:
    """Compiles what a run without labels asks; what it returns is whole on every device."""
    how = {"model": run.model, "mean": run.preprocess.mean, "std": run.preprocess.std}

    def compiled(function: Callable[..., Metrics]) -> Callable[[Params, Batch], Metrics]:
        step = functools.partial(function, **how)
        jitted = compile_for_hosts(step, mesh=run.mesh, param_shardings=param_shardings)
        return lambda params, batch: jitted(params, shard_batch(batch, run.mesh))

    return Predict(compiled(_sums), compiled(_features))


def evaluate(run: Run, predict: Predict, params: Params, *, step: int) -> dict[str, float]:
    """Returns the mean loss of the test images, and where it is due the probes' accuracies."""
    totals = dict.fromkeys(("loss", "count"), jnp.zeros(()))
    for batch in run.test_batches:
        sums = predict.sums(params, batch)
        totals = {key: total + sums[key] for key, total in totals.items()}
    numbers = {"test/loss": float(totals["loss"]) / float(totals["count"])}
    if run.probes is not None and run.probes.due_at(step, run.plan):
        numbers |= probe(run, predict, params)
    return numbers


def probe(run: Run, predict: Predict, params: Params) -> dict[str, float]:
    """Returns what the encoder's features are worth (`evaluate.probes`), top-1 in [0, 1]."""
    train, test = (
        Features(*collect(predict.features(params, batch) for batch in batches))
        for batches in (run.probes.batches, run.test_batches)
    )
    classes = run.probes.num_classes
    check_features(train, test, classes)
    neighbours = knn_accuracies(train, test, num_classes=classes, ks=(NEIGHBOURS,))
    return {
        "test/knn_accuracy": neighbours[NEIGHBOURS],
        "test/linear_accuracy": linear_probe(train, test)[1],
    }


def finish(
    config: ConfigDict,
    run: Run,
    workdir: Path,
    params: Params,
    predict: Predict,
    *,
    provenance: dict[str, Any],
) -> PretrainingResult:
    """Measures the final parameters; the first host writes the weights and the report."""
    numbers = evaluate(run, predict, params, step=run.plan.total_steps)
    params = multihost_utils.process_allgather(params, tiled=True)  # whole, in the host's memory
    with raising_together():
        if jax.process_index() == 0:
            write_results(config, run, workdir, params, numbers, provenance=provenance)
    return PretrainingResult(
        config.model.name,
        config.pretrain.method,
        numbers["test/loss"],
        len(run.test),
        workdir / WEIGHTS,
        workdir / REPORT,
    )


def write_results(
    config: ConfigDict,
    run: Run,
    workdir: Path,
    params: Params,
    numbers: dict[str, float],
    *,
    provenance: dict[str, Any],
) -> None:
    """Writes the weights, decoder included, and the report with pictures."""
    save_pretrained(
        workdir / WEIGHTS,
        run.model,
        {"params": params},
        metadata={
            "name": config.model.name,
            "preprocess": run.preprocess,
            "provenance": provenance,
            "metrics": numbers,
        },
    )
    write_pretraining_report(
        workdir / REPORT,
        title=f"{config.pretrain.method}: {config.model.name} on {config.data.dataset}",
        model=run.model,
        params=params,
        numbers=numbers,
        pictures=draw(run, params),
        source=run.test,
        workdir=workdir,
        command=provenance["command"],
        origin=provenance["init_from"],
    )


def draw(run: Run, params: Params) -> Pictures:
    """Returns the first test images, what of them was hidden, and what was painted there."""
    batch = next(iter(run.test_batches))
    images = np.asarray(batch["image"])[:_PICTURES][np.asarray(batch["mask"][:_PICTURES]) > 0]
    mean, std = run.preprocess.mean, run.preprocess.std
    out = jax.jit(functools.partial(reconstruct, model=run.model, mean=mean, std=std))(
        params, {"image": images}
    )
    return Pictures.of(images, out, mean=mean, std=std)
