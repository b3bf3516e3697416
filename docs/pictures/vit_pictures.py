"""Attention, positions, patches, the ways through the models, and what they cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from panels import BLUE, INK, ORANGE, SIDE, grid, matrix, panels, photo

from vitswin_jax.models.registry import create_model
from vitswin_jax.nn.block import SelfAttention
from vitswin_jax.nn.windows import window_partition
from vitswin_jax.plan.cost import describe


def attention() -> Figure:
    """Softmax of q·k for six tokens, two heads of four channels: each head its own weights."""
    x = jax.random.normal(jax.random.key(2), (1, 6, 8))
    module = SelfAttention(num_heads=2, kernel_init=jax.nn.initializers.normal(0.8))
    variables = module.init(jax.random.key(1), x, train=False)
    out, left = module.apply(variables, x, train=False, mutable=["intermediates"])
    weights = left["intermediates"]["attention"][0][0]  # (heads, n, n)
    kernel = variables["params"]["qkv"]["kernel"]
    q, k, v = jnp.einsum("nc,cthd->thnd", x[0], kernel)
    figure = panels(
        r"$X\ (n, c)$", r"$Q_1, Q_2$", r"$K_1, K_2$", r"$A_1$", r"$A_2$", r"$V_1, V_2$",
        r"$\mathrm{MSA}(X)$", height=1.9,
    )  # fmt: skip
    heads = [np.concatenate(list(part), axis=1) for part in (q, k, v)]
    shown = (x[0], heads[0], heads[1], weights[0], weights[1], heads[2], out[0])
    for i, (axis, values) in enumerate(zip(figure.axes, shown, strict=True)):
        if i in (3, 4):
            axis.imshow(values, cmap="Blues", vmin=0, vmax=1)
            continue
        matrix(axis, np.asarray(values))
        if i in (1, 2, 5):
            axis.axvline(3.5, color=INK, lw=2)
    return figure


def permutation() -> Figure:
    """Attention of permuted tokens is permuted attention, until each place has an embedding."""
    x = jax.random.normal(jax.random.key(0), (1, 8, 8))
    places = jax.random.normal(jax.random.key(3), (1, 8, 8))
    order = np.array([3, 0, 6, 1, 7, 4, 2, 5])
    module = SelfAttention(num_heads=2)
    variables = module.init(jax.random.key(1), x, train=False)

    def attend(tokens: jax.Array) -> np.ndarray:
        return np.asarray(module.apply(variables, tokens, train=False)[0])

    without = attend(x[:, order]) - attend(x)[order]
    within = attend(x[:, order] + places) - attend(x + places)[order]
    figure = panels(
        r"$X$", r"$PX$", r"$f(X)$", r"$f(PX)$", r"$f(PX)-Pf(X)$", r"$f(PX{+}E)-Pf(X{+}E)$",
        height=2.0,
    )  # fmt: skip
    limit = float(np.abs(within).max())
    shown = (x[0], x[0, order], attend(x), attend(x[:, order]), without, within)
    for axis, values in zip(figure.axes, shown, strict=True):
        difference = axis in figure.axes[-2:]
        bound = limit if difference else float(np.abs(values).max())
        axis.imshow(values, cmap="RdBu_r", vmin=-bound, vmax=bound)
    return figure


def patches() -> Figure:
    """A photograph, its patches of 16 pixels, and the class token with the sequence of patches."""
    image = photo()
    cut = np.asarray(window_partition(jnp.asarray(image, jnp.float32)[None], (16, 16)))[0]
    figure = panels(
        r"$x\ (224, 224, 3)$",
        r"$14 \times 14$ patches",
        r"$z_0\ (1{+}196, 768)$",
        widths=(1, 1, 2.6),
    )
    figure.axes[0].imshow(image)
    figure.axes[1].imshow(image)
    grid(figure.axes[1], SIDE, 16)
    row, last = figure.axes[2], 8
    row.set_xlim(-1.5, last + 3.5)
    row.set_ylim(2.4, -1.6)
    row.add_patch(Rectangle((-1.4, -0.4), 0.8, 0.8, color=ORANGE))
    row.text(-1, 1.0, "cls_token", ha="center", fontsize=8)
    for i in range(last):
        tile = cut[90 + i].reshape(16, 16, 3).astype(np.uint8)
        row.imshow(tile, extent=(i - 0.4, i + 0.4, 0.4, -0.4))
        row.text(i, 1.0, f"$x_{{{91 + i}}}$", ha="center", fontsize=9)
    row.text(last + 0.3, 0.1, r"$\cdots\ x_{196}$", fontsize=11)
    row.text(3.5, 1.9, r"$+\ E_{pos}$  (pos_embed)", ha="center", fontsize=10, color=BLUE)
    row.set_aspect("equal")
    row.axis("off")
    row.set_title(r"$z_0\ (1{+}196, 768)$", fontsize=10, color=INK)
    return figure


def pipelines() -> Figure:
    """The ways of an image through a ViT, a hybrid and a Swin, by their shapes."""
    rows = {
        "vit_base_patch16_224": [
            ("images", "224·224·3"), ("patch_embed", "14·14·768"), ("cls, pos", "197·768"),
            ("block ×12", "197·768"), ("norm, [0]", "768"), ("head", "1000"),
        ],
        "vit_base_r50_s16_224": [
            ("images", "224·224·3"), ("backbone", "14·14·1024"), ("patch_embed 1×1", "14·14·768"),
            ("cls, pos", "197·768"), ("block ×12", "197·768"), ("head", "1000"),
        ],
        "swin_tiny_patch4_window7_224": [
            ("patch_embed", "56·56·96"), ("stage_0 ×2", "56·56·96"), ("stage_1 ×2", "28·28·192"),
            ("stage_2 ×6", "14·14·384"), ("stage_3 ×2", "7·7·768"), ("mean, head", "1000"),
        ],
    }  # fmt: skip
    figure, axis = plt.subplots(figsize=(9.6, 3.6), layout="constrained")
    axis.set_xlim(-0.1, 12)
    axis.set_ylim(6.2, -0.9)
    axis.axis("off")
    for line, (name, boxes) in enumerate(rows.items()):
        top = 2.2 * line
        axis.text(0, top - 0.25, name, fontsize=9, color=BLUE, family="monospace")
        for i, (what, shape) in enumerate(boxes):
            axis.add_patch(Rectangle((2 * i, top), 1.65, 1.2, fc="#eef4fa", ec=BLUE))
            axis.text(2 * i + 0.82, top + 0.42, what, ha="center", va="center", fontsize=8.5)
            axis.text(2 * i + 0.82, top + 0.86, shape, ha="center", va="center", fontsize=8.5)
            if i:
                axis.annotate("", (2 * i, top + 0.6), (2 * i - 0.35, top + 0.6),
                              arrowprops={"arrowstyle": "->", "color": INK})  # fmt: skip
    return figure


def cost() -> Figure:
    """Multiply-adds against image size, counted from the traced programs."""
    figure, axis = plt.subplots(figsize=(5.2, 3.3), layout="constrained")
    for name, step, color in (
        ("vit_base_patch16_224", 112, ORANGE),
        ("swin_base_patch4_window7_224", 224, BLUE),
    ):
        sides = range(224, 1121, step)
        counts = [describe(create_model(name, img_size=s, scan=True)).multiply_adds for s in sides]
        axis.plot(sides, np.array(counts) / 1e9, "o-", ms=4, color=color, label=name)
    axis.set_xlabel("img_size")
    axis.set_ylabel(r"$10^9$ multiply-adds")
    axis.set_ylim(0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
