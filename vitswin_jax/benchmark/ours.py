"""Our own worker: `load_pretrained`'s model, and the step that `train.py` jits.

python -m vitswin_jax.benchmark.ours ours|products
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitswin_jax.benchmark.peers.serve import serve
from vitswin_jax.benchmark.peers.work import LEARNING_RATE, Job, Work, jax_inference, jax_training
from vitswin_jax.core.heap import keep_freed_memory
from vitswin_jax.nn.forms import compiler_options, forms, traced_for
from vitswin_jax.train.optim.optimizers import make_optim
from vitswin_jax.train.sharding import create_mesh, shard_batch, state_shardings
from vitswin_jax.train.state import state_of_copies
from vitswin_jax.train.step import StepOptions, make_train_step
from vitswin_jax.weights.load import load_pretrained


def ours(job: Job) -> Work:
    """Returns inference or a training step by a model of ours, from the file a peer reads too.

    A variant's `form.NAME` is a field of `nn.forms.Forms`, `flag.NAME` an option of XLA's compiler,
    and the others are the model's own.
    """
    keep_freed_memory()  # as train.py and vitswin do
    own, chosen, flags = (_of_kind(job["variant"], kind) for kind in ("", "form", "flag"))
    in_forms = functools.partial(traced_for, forms=dataclasses.replace(forms(), **chosen))
    with in_forms():
        options = {**(compiler_options() or {}), **flags}
        work = _ours({**job, "flags": options, "variant": own})

    def call() -> Any:
        with in_forms():  # the first call traces
            return work.call()

    return dataclasses.replace(work, call=call)


def _of_kind(variant: Mapping[str, Any], kind: str) -> dict[str, Any]:
    parts = ((*name.rpartition("."), value) for name, value in variant.items())
    return {name: value for prefix, _, name, value in parts if prefix == kind}


def _ours(job: Job) -> Work:
    variant = {**job["own"], **job["variant"]}
    accum_steps = variant.pop("accum_steps", 1) if job["task"] == "train" else 1
    model, variables = load_pretrained(
        job["weights"],
        job["name"],
        img_size=job["img_size"],
        dtype=jnp.dtype(job["dtype"]),
        **variant,
    )
    if job["task"] == "inference":
        return jax_inference(job, functools.partial(model.apply, train=False), variables)
    _, tx, groups = make_optim(
        {
            "name": "adamw",
            "schedule": "constant",
            "peak_lr": LEARNING_RATE,
            "weight_decay": 0.0,
            "total_steps": 1_000_000,
        }
    )
    mesh = create_mesh(data=1)
    state = state_of_copies(variables["params"], tx)
    step = make_train_step(
        model,
        tx,
        options=StepOptions(groups=groups, accum_steps=accum_steps),
        mesh=mesh,
        shardings=state_shardings(mesh, state),
    )
    mask = np.ones(len(job["labels"]), np.float32)
    batch = shard_batch({"image": job["images"], "label": job["labels"], "mask": mask}, mesh)
    return jax_training(job, step, state, batch, jax.random.key(0))


def products(job: Job) -> Work:
    """Returns a chain of a ViT's projections, MLPs and both products of its attention.

    The floor of such a model where its time is that of its matrix products: same shapes, float32 or
    `dtype`, and nothing between them but the residual additions.
    """
    fields, dtype = job["fields"], jnp.dtype(job["dtype"])
    width, heads, patch = fields["embed_dim"], fields["num_heads"], fields["patch_size"]
    batch, height, width_px, _ = job["images"].shape
    tokens = 1 + (height // patch) * (width_px // patch)
    hidden = round(width * fields["mlp_ratio"])
    shapes = {
        "qkv": (width, 3, heads, width // heads),
        "proj": (heads, width // heads, width),
        "fc1": (width, hidden),
        "fc2": (hidden, width),
    }
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:  # so small that the residuals neither grow nor vanish
        return jnp.asarray(0.005 * rng.standard_normal(shape), dtype)

    blocks = [
        {name: draw(*shape) for name, shape in shapes.items()} for _ in range(fields["depth"])
    ]

    def chain(blocks: Any, images: Any) -> Any:
        x = jnp.broadcast_to(images.mean(), (batch, tokens, width)).astype(dtype)
        for block in blocks:
            qkv = jnp.einsum("bnc,cthd->bnthd", x, block["qkv"])
            q, k, v = jnp.moveaxis(qkv, (2, 3), (0, 2))
            mixed = jnp.einsum("bhqk,bhkd->bhqd", jnp.einsum("bhqd,bhkd->bhqk", q, k), v)
            x = x + jnp.einsum("bhnd,hdc->bnc", mixed, block["proj"])
            x = x + x @ block["fc1"] @ block["fc2"]
        return x[:, 0]

    return jax_inference(job, chain, blocks)


WORKERS = {"ours": ours, "products": products}

if __name__ == "__main__":
    serve(WORKERS[sys.argv[1]], ("jax", "flax"))
