"""The error of gradients that devices sum in bfloat16, beside the other errors of a gradient.

python benchmarks/gradient_sums.py [--devices 8 64 256] [--images 4] [--steps 200] [--smoke]

With `model.dtype=bfloat16` a kernel's gradient is a product in bfloat16, and XLA sums it over the
devices in this type: half the bytes of float32. The script trains a small ViT on the digits for
`--steps`, computes the gradient of `--images` digits for each device, and sums what the devices
have. Columns, each as a share of the norm of the exact sum:

- ring: added one after the other in bfloat16, as on a ring of all devices;
- tree: added by pairs in bfloat16;
- compute: the difference between gradients of bfloat16 and of float32, both summed exactly;
- sampling: the difference between the halves of the devices, which is chance of the images.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn.datasets import load_digits

import vitswin_jax

SIZES = {"img_size": 8, "patch_size": 2, "embed_dim": 96, "depth": 4, "num_heads": 3}
DTYPES = ("float32", "bfloat16")


def digits() -> tuple[Array, Array]:
    """Returns images (n, 8, 8, 1) in [-1, 1] and labels, shuffled."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = jnp.asarray(bunch.images[order, ..., None] / 8 - 1, jnp.float32)
    return images, jnp.asarray(bunch.target[order])


def loss_of(model: Any, params: Any, images: Array, labels: Array) -> Array:
    """Returns the mean cross entropy."""
    logits = model.apply({"params": params}, images, train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def trained(model: Any, images: Array, labels: Array, steps: int) -> Any:
    """Returns parameters after steps of AdamW on batches of 64."""
    tx = optax.adamw(1e-3)

    @jax.jit
    def step(params: Any, state: Any, images: Array, labels: Array) -> tuple[Any, Any]:
        gradient = jax.grad(functools.partial(loss_of, model))(params, images, labels)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = model.init(jax.random.key(0), images[:1])["params"]
    state = tx.init(params)
    for number in range(steps):
        chosen = np.random.default_rng(number).integers(len(labels), size=64)
        params, state = step(params, state, images[chosen], labels[chosen])
    return params


def kernels(model: Any, params: Any, images: Array, labels: Array) -> np.ndarray:
    """Returns the gradient of the blocks' kernels on each device, (devices, numbers)."""

    def one(batch: tuple[Array, Array]) -> Any:
        return jax.grad(functools.partial(loss_of, model))(params, *batch)

    gradients = jax.jit(functools.partial(jax.lax.map, one))((images, labels))
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    named = (
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves
    )
    chosen = [leaf for name, leaf in named if "block" in name and name.endswith("kernel")]
    return np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in chosen], axis=1)


def errors(low: np.ndarray, exact: np.ndarray) -> list[float]:
    """Returns ring, tree, compute and sampling of gradients in bfloat16 and in float32."""
    total = low.sum(0, dtype=np.float64)
    codes = jnp.asarray(low, jnp.bfloat16)
    ring = functools.reduce(jnp.add, codes)
    tree = codes
    while len(tree) > 1:
        tree = tree[::2] + tree[1::2]
    halves = (low[start::2].sum(0, dtype=np.float64) for start in (0, 1))
    differences = (
        np.asarray(ring, np.float64) - total,
        np.asarray(tree[0], np.float64) - total,
        exact.sum(0, dtype=np.float64) - total,
        np.subtract(*halves),
    )
    return [float(np.linalg.norm(each) / np.linalg.norm(total)) for each in differences]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a row of the table for each number of devices."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 256], help="powers of 2")
    parser.add_argument("--images", type=int, default=4, help="of one device")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--smoke", action="store_true", help="two devices, after two steps")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.devices, options.steps = [2], 2
    images, labels = digits()
    models = [
        vitswin_jax.create_model("vit", in_chans=1, num_classes=10, dtype=dtype, **SIZES)
        for dtype in DTYPES
    ]
    params = trained(models[0], images, labels, options.steps)
    print("| devices | ring | tree | compute | sampling |")
    print("| --- | --- | --- | --- | --- |")
    for count in options.devices:
        shape = (count, options.images)
        needed = count * options.images
        batch = images[:needed].reshape(*shape, 8, 8, 1), labels[:needed].reshape(shape)
        exact, low = (kernels(model, params, *batch) for model in models)
        print(f"| {count} |", " | ".join(f"{each:.2%}" for each in errors(low, exact)), "|")


if __name__ == "__main__":
    main()
