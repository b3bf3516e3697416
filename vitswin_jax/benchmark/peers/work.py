"""The call that a worker repeats: jitted JAX, torch, or any other function of the inputs.

Peers' own interpreters import this, so nothing but the standard library and NumPy is imported up
here, and nothing of this package.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

LEARNING_RATE = 1e-4

Job = Mapping[str, Any]


@dataclasses.dataclass
class Work:
    """The call that a worker repeats: `call` starts one, `fetch` waits for its logits or its loss.

    Nothing is compiled before the first call.
    """

    call: Callable[[], Any]
    fetch: Callable[[Any], np.ndarray]
    device: str
    peak_bytes: Callable[[], int | None]  # of an accelerator's memory
    temporary_bytes: Callable[[], int | None] = lambda: None  # by XLA's plan
    trace: Callable[[str], contextlib.AbstractContextManager] | None = None  # into a folder


def _jax_work(
    call: Callable[[], Any], fetch: Callable[[Any], np.ndarray], program: Callable[[], Any]
) -> Work:
    import jax

    device = jax.devices()[0]
    return Work(
        call,
        fetch,
        device.device_kind,
        lambda: (device.memory_stats() or {}).get("peak_bytes_in_use"),
        lambda: program().memory_analysis().temp_size_in_bytes,
        jax.profiler.trace,
    )


def jax_inference(job: Job, apply: Callable[[Any, Any], Any], params: Any) -> Work:
    """Returns the work of a jitted `apply(params, images)`."""
    import jax

    _set_precision(job)
    params = jax.device_put(params)
    images = jax.numpy.asarray(job["images"])
    program = functools.cache(
        lambda: jax.jit(apply).lower(params, images).compile(job.get("flags"))
    )
    return _jax_work(lambda: program()(params, images), np.asarray, program)


def jax_training(job: Job, step: Any, state: Any, *inputs: Any) -> Work:
    """Returns the work of a jitted `step(state, *inputs)`, which gives (state, {"loss": ...}).

    The step may overwrite the state that it is given.
    """
    _set_precision(job)
    program = functools.cache(lambda: step.lower(state, *inputs).compile(job.get("flags")))

    def call() -> Any:
        nonlocal state
        state, metrics = program()(state, *inputs)
        return metrics

    return _jax_work(call, lambda metrics: np.asarray(metrics["loss"]), program)


def _set_precision(job: Job) -> None:
    """Makes float32 products what torch's are: in float32 on every device."""
    import jax

    if job["dtype"] == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")


def jax_peer(job: Job, apply: Callable[[Any, Any], Any], params: Any) -> Work:
    if job["task"] == "inference":
        return jax_inference(job, apply, params)
    import jax
    import optax

    tx = optax.adamw(LEARNING_RATE, weight_decay=0.0)

    def loss_of(params: Any, images: Any, labels: Any) -> Any:
        losses = optax.softmax_cross_entropy_with_integer_labels(apply(params, images), labels)
        return losses.mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, images: Any, labels: Any) -> Any:
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_of)(params, images, labels)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {"loss": loss}

    params = jax.tree.map(jax.numpy.array, params)
    images, labels = (jax.numpy.asarray(job[key]) for key in ("images", "labels"))
    return jax_training(job, step, (params, tx.init(params)), images, labels)


def torch_work(job: Job, model: Any, *, compiled: bool) -> Work:
    import torch

    torch.set_num_threads(job["threads"])
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = getattr(torch, job["dtype"])
    train = job["task"] == "train"
    images = torch.from_numpy(job["images"].transpose(0, 3, 1, 2).copy()).to(device)
    labels = torch.from_numpy(job["labels"]).long().to(device)
    model = model.to(device).train(train)
    if not train:
        model, images = model.to(dtype), images.to(dtype)
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0)

    def inference() -> Any:
        with torch.inference_mode():
            return run(images)

    def step() -> Any:
        optimizer.zero_grad()
        half = torch.autocast(device.type, dtype) if dtype != torch.float32 else None
        with half or contextlib.nullcontext():
            loss = torch.nn.functional.cross_entropy(run(images).float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Work(
        step if train else inference,
        lambda result: result.float().cpu().numpy(),
        torch.cuda.get_device_name() if cuda else "cpu",
        lambda: torch.cuda.max_memory_allocated() if cuda else None,
    )
