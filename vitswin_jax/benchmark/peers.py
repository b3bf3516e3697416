"""Timed workers, one library per process: requests on stdin, answers in JSON lines.

python peers.py NAME

Runs in a peer's own interpreter, so nothing but the standard library and NumPy is imported up here,
and nothing of this package. The first line is the job (`cases.Job`); the answer says how long it
took to have the model and its weights (`load_s`), and then to compile and do the first call
(`first_s`). Then {"calls": n} is answered by seconds of a call, each waited for, {"queued": n} by
seconds of a call where only the last is waited for, {"trace": folder} by a profile of one, {} by
the peak of memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
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


def _jax_peer(job: Job, apply: Callable[[Any, Any], Any], params: Any) -> Work:
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


def _torch_work(job: Job, model: Any, *, compiled: bool) -> Work:
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


def _timm(job: Job, *, compiled: bool = False) -> Work:
    import torch

    # torchvision has no build for every torch; none of its compiled operators is needed here.
    register = torch.library.register_fake
    torch.library.register_fake = lambda name, *rest, **more: (
        (lambda function: function)
        if str(name).startswith("torchvision::")
        else register(name, *rest, **more)
    )
    import timm
    from safetensors.torch import load_file

    size = job["images"].shape[1:3]
    model = timm.create_model(
        job["name"], img_size=size, num_classes=job["num_classes"], drop_path_rate=0.0
    )
    model.load_state_dict(load_file(job["weights"]))
    return _torch_work(job, model, compiled=compiled)


def _transformers_flax(job: Job) -> Work:
    import jax.numpy as jnp
    from transformers import FlaxViTForImageClassification, ViTConfig

    fields, weights = job["fields"], Path(job["weights"])
    folder = weights.with_suffix("")
    folder.mkdir(exist_ok=True)
    if not (link := folder / "model.safetensors").exists():
        link.symlink_to(weights)
    config = ViTConfig(
        hidden_size=fields["embed_dim"],
        num_hidden_layers=fields["depth"],
        num_attention_heads=fields["num_heads"],
        intermediate_size=round(fields["embed_dim"] * fields["mlp_ratio"]),
        patch_size=fields["patch_size"],
        image_size=job["images"].shape[1],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=job["num_classes"],
    )
    config.save_pretrained(folder)
    model = FlaxViTForImageClassification.from_pretrained(
        folder, from_pt=True, dtype=getattr(jnp, job["dtype"])
    )

    def apply(params: Any, images: Any) -> Any:
        return model(images.transpose(0, 3, 1, 2), params=params).logits.astype(jnp.float32)

    return _jax_peer(job, apply, model.params)


def _google_params(job: Job) -> Any:
    from flax.training.checkpoints import convert_pre_linen
    from flax.traverse_util import unflatten_dict

    with np.load(job["weights"]) as arrays:
        params = unflatten_dict({key: arrays[key] for key in arrays.files}, sep="/")
    return convert_pre_linen(params)  # Flax counts modules by their class since


def _vit_jax(job: Job) -> Work:
    from types import SimpleNamespace

    from vit_jax import models_vit

    fields = job["fields"]
    model = models_vit.VisionTransformer(
        num_classes=job["num_classes"],
        patches=SimpleNamespace(size=(fields["patch_size"],) * 2),
        hidden_size=fields["embed_dim"],
        transformer={
            "num_layers": fields["depth"],
            "num_heads": fields["num_heads"],
            "mlp_dim": round(fields["embed_dim"] * fields["mlp_ratio"]),
            "dropout_rate": 0.0,
            "attention_dropout_rate": 0.0,
        },
    )

    def apply(params: Any, images: Any) -> Any:
        return model.apply({"params": params}, images, train=False)

    return _jax_peer(job, apply, _google_params(job))


def _big_vision(job: Job) -> Work:
    from big_vision.models import vit

    fields = job["fields"]
    model = vit.Model(
        job["num_classes"],
        patch_size=(fields["patch_size"],) * 2,
        width=fields["embed_dim"],
        depth=fields["depth"],
        num_heads=fields["num_heads"],
        mlp_dim=round(fields["embed_dim"] * fields["mlp_ratio"]),
        pool_type="tok",
        dtype_mm=job["dtype"],
    )
    params = vit.fix_old_checkpoints(_google_params(job))

    def apply(params: Any, images: Any) -> Any:
        return model.apply({"params": params}, images)[0]

    return _jax_peer(job, apply, params)


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library: what its interpreter must have, what it can run, whose files it reads."""

    needs: tuple[str, ...]
    reads: str  # a format of `save_pretrained`
    families: tuple[str, ...]
    dtypes: tuple[str, ...]
    start: Callable[[Job], Work]


_TIMM = (("torch", "timm"), "timm", ("vit", "swin", "swinv2"), ("float32", "bfloat16"))
_JAX = ("jax", "flax", "optax")
PEERS = {
    "timm": Peer(*_TIMM, _timm),
    "timm-compiled": Peer(*_TIMM, functools.partial(_timm, compiled=True)),
    "transformers-flax": Peer(
        (*_JAX, "transformers.models.vit.modeling_flax_vit"),
        "huggingface",
        ("vit",),
        ("float32", "bfloat16"),
        _transformers_flax,
    ),
    "vit_jax": Peer((*_JAX, "vit_jax"), "google", ("vit",), ("float32",), _vit_jax),
    "big_vision": Peer(
        (*_JAX, "big_vision", "tensorflow"),
        "google",
        ("vit",),
        ("float32", "bfloat16"),
        _big_vision,
    ),
}


def _status(field: str) -> int | None:
    """Returns bytes of memory of this process, where the system says: Linux."""
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    lines = path.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _start(job: Job, start: Callable[[Job], Work]) -> tuple[Work, dict[str, Any]]:
    with np.load(job["inputs"]) as arrays:
        job = {**job, "images": arrays["images"], "labels": arrays["labels"]}
    began = time.perf_counter()
    work = start(job)
    loaded = time.perf_counter()
    first = work.fetch(work.call())
    done = time.perf_counter()
    second = work.fetch(work.call())
    if job["task"] == "train":  # losses before and after the first update
        first = np.stack([first, second])
    np.save(job["outputs"], np.asarray(first, np.float32))
    if _status("VmRSS"):
        with contextlib.suppress(AttributeError):  # of what compiling has left, where glibc is
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM is the peak
    facts = {"device": work.device, "temporary_bytes": work.temporary_bytes()}
    return work, facts | {"load_s": loaded - began, "first_s": done - loaded}


def _time(work: Work, calls: int, *, queued: bool = False) -> dict[str, float]:
    """Returns the seconds of a call; of `queued` calls only the last is waited for."""
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(1, calls + 1):
        result = work.call()
        if not queued or number == calls:
            work.fetch(result)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall / calls, "cpu": cpu / calls}


def serve(start: Callable[[Job], Work]) -> None:
    """Answers questions until stdin ends; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work, facts = _start(json.loads(sys.stdin.readline()), start)
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "calls" in question:
            answer: Mapping[str, float | None] = _time(work, question["calls"])
        elif "queued" in question:
            answer = _time(work, question["queued"], queued=True)
        elif "trace" in question:
            answer = {}
            if work.trace is not None:
                with work.trace(question["trace"]):
                    answer = _time(work, 1)
        else:
            on_device = work.peak_bytes()
            answer = {"peak_bytes": _status("VmHWM") if on_device is None else on_device}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder, whose modules are not the peer's
    serve(PEERS[sys.argv[1]].start)
