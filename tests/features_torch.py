"""Distillation of features once more, in PyTorch, to hold ours against.

python tests/features_torch.py writes goldens/train/features.npz: of each of CASES the loss of three
images and its gradients, end to end in the order of their names, of what `make_case` draws by
numpy; computed in float64. This code imports nothing of the package. Parameters have our names.
"""

from pathlib import Path

import numpy as np
from dino_torch import encode
from gradients import draw_params
from masked_torch import SWIN, VIT, linear

GOLDENS = Path(__file__).parent / "goldens" / "train" / "features.npz"
SMALL = VIT | {"img_size": 24, "patch_size": 8, "embed_dim": 12}  # 3 x 3 patches
LARGE = VIT | {"img_size": 24, "embed_dim": 12, "global_pool": "avg"}  # 6 x 6 patches
OURS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
THEIRS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
CASES = {  # name: (student, teacher, both with their families, the section of the config)
    "token": (("vit", VIT), ("vit", SMALL),
              {"features": "token", "loss": "cosine", "beta": 1.0, "alpha": 1.0}),
    "patches": (("vit", VIT | {"global_pool": "avg"}), ("vit", LARGE),
                {"features": "patches", "loss": "smooth_l1", "beta": 0.5, "alpha": 1.0}),
    "both": (("swin", SWIN), ("vit", SMALL),
             {"features": "both", "loss": "cosine", "beta": 1.0, "alpha": 1.0}),
    "labels": (("vit", VIT | {"num_classes": 3}), ("swin", SWIN),
               {"features": "both", "loss": "smooth_l1", "beta": 2.0, "alpha": 0.4}),
}  # fmt: skip


def make_case(name, shapes, teacher_shapes):
    """Parameters of student and teacher, normalised images, and soft targets of three classes."""
    rng = np.random.default_rng(sum(map(ord, name)))
    params, teacher = draw_params(rng, shapes), draw_params(rng, teacher_shapes)
    images = rng.standard_normal((3, 16, 16, 3)).astype(np.float32)
    return params, teacher, images, rng.dirichlet(np.ones(3), 3).astype(np.float32)


def resize(maps, size, mode):
    """Maps (n, h, w, c) at another size."""
    import torch

    planes = maps.permute(0, 3, 1, 2)
    planes = torch.nn.functional.interpolate(planes, size=size, mode=mode, antialias=True)
    return planes.permute(0, 2, 3, 1)


def squares(tokens):
    """Tokens (n, h * h, c) as maps (n, h, h, c)."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.reshape(len(tokens), side, side, -1)


def loss_of(name, student, teacher, images, targets):
    """The mean loss of the images."""
    import torch

    (family, fields), (their_family, their_fields), section = CASES[name]

    unused = torch.zeros(1, 1)  # as nothing is masked

    def encoder(params):
        return {f"encoder/{path}": leaf for path, leaf in params.items()} | {"mask_token": unused}

    pixels = images * torch.tensor(OURS["std"]) + torch.tensor(OURS["mean"])
    shown = (pixels - torch.tensor(THEIRS["mean"])) / torch.tensor(THEIRS["std"])
    side = their_fields["img_size"]
    if side != 16:
        shown = resize(shown, (side, side), "bicubic")
    features, tokens = encode(images, encoder(student), family, fields)
    with torch.no_grad():
        their_features, their_tokens = encode(shown, encoder(teacher), their_family, their_fields)
        maps = squares(tokens)
        their_maps = resize(squares(their_tokens), maps.shape[1:3], "bilinear")
    pairs = []
    if section["features"] in ("token", "both"):
        pairs.append((linear(features, student, "distill/token"), their_features))
    if section["features"] in ("patches", "both"):
        pairs.append((linear(squares(tokens), student, "distill/patches"), their_maps))
    losses = []
    for ours, theirs in pairs:
        if section["loss"] == "cosine":
            losses.append((1 - torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)).mean())
        else:
            loss = torch.nn.functional.smooth_l1_loss(ours, theirs, beta=section["beta"])
            losses.append(loss)
    loss = section["alpha"] * sum(losses) / len(losses)
    if section["alpha"] < 1:
        logits = linear(features, student, "head")
        loss += (1 - section["alpha"]) * torch.nn.functional.cross_entropy(logits, targets)
    return loss


def loss_and_gradients(name, shapes, teacher_shapes):
    """The case's loss, and the gradient of each of the student's parameters."""
    import torch

    torch.set_default_dtype(torch.float64)
    try:
        student, teacher, images, targets = make_case(name, shapes, teacher_shapes)
        p, q = (
            {path: torch.tensor(x, dtype=torch.float64) for path, x in each.items()}
            for each in (student, teacher)
        )
        for leaf in p.values():
            leaf.requires_grad_()
        images, targets = (torch.tensor(x, dtype=torch.float64) for x in (images, targets))
        loss = loss_of(name, p, q, images, targets)
        loss.backward()
    finally:
        torch.set_default_dtype(torch.float32)
    grads = {path: torch.zeros_like(x) if x.grad is None else x.grad for path, x in p.items()}
    return loss.item(), {path: g.numpy().astype(np.float32) for path, g in grads.items()}


def shapes_of(name):
    """The shapes of the student's parameters, with the projections, and of the teacher's."""
    from vitswin_jax.models.registry import create_model
    from vitswin_jax.weights.shapes import parameter_shapes

    student, teacher, section = CASES[name]
    shapes, theirs = (
        parameter_shapes(create_model(family, **fields)) for family, fields in (student, teacher)
    )
    shapes = dict(shapes)
    widths = [each[1]["embed_dim"] * (2 if each[0] == "swin" else 1) for each in (student, teacher)]
    for kind in ("token", "patches"):
        if section["features"] in (kind, "both"):
            shapes[f"distill/{kind}/kernel"] = tuple(widths)
            shapes[f"distill/{kind}/bias"] = (widths[1],)
    return shapes, theirs


def main():
    """Writes the goldens; of the package come the names and the shapes of the parameters."""
    arrays = {}
    for name in CASES:
        loss, grads = loss_and_gradients(name, *shapes_of(name))
        arrays[f"{name}:loss"] = np.float64(loss)
        arrays[f"{name}:grads"] = np.concatenate([grads[path].ravel() for path in sorted(grads)])
    np.savez_compressed(GOLDENS, **arrays)


if __name__ == "__main__":
    main()
