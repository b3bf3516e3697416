"""Self-distillation once more, in PyTorch and from the papers, to hold ours against.

python tests/dino_torch.py writes goldens/dino.npz: of each of CASES the loss for fixed views and
masks, its gradients, end to end in the order of their names, and the centres after it; computed in
float64 of what `make_case` draws by numpy.

This code imports nothing of the package, and loops over images, views and pairs. Parameters have
our names.
"""

import math
from pathlib import Path

import numpy as np
from gradients import draw_params
from masked_torch import SWIN, VIT, embed, linear, norm, swin_map, vit_block

GOLDENS = Path(__file__).parent / "goldens" / "models" / "dino.npz"
SMALL = {"method": "dino", "out_dim": 6, "hidden_dim": 10, "bottleneck_dim": 4}
CASES = {  # name: (family, the encoder's fields, the method's, small views, the step)
    "dino": ("vit", VIT, SMALL | {"warmup_teacher_temp": 0.05, "teacher_temp": 0.1}, 3, 1),
    "ibot": ("vit", VIT | {"global_pool": "avg"}, SMALL | {
        "patch_weight": 0.7, "shared_head": False, "koleo_weight": 0.2, "mask_ratio": 0.4}, 0, 0),
    "dinov2": ("vit", VIT, SMALL | {
        "patch_weight": 1.0, "centering": "sinkhorn", "koleo_weight": 0.1}, 2, 0),
    "swin": ("swin", SWIN, SMALL | {"patch_weight": 0.5, "mask_ratio": 0.5}, 0, 0),
}  # fmt: skip
WARMUP = 4  # steps
LOCAL = 8  # pixels
STUDENT, CENTER_MOMENTUM = 0.1, 0.9


def make_case(name, shapes):
    """Parameters of student and teacher, views, masks and centres of three images."""
    _, _, method, small, _ = CASES[name]
    rng = np.random.default_rng(sum(map(ord, name)))
    both = [draw_params(rng, shapes) for _ in range(2)]
    batch = {
        "image": rng.standard_normal((3, 2, 16, 16, 3)).astype(np.float32),
        "mask": np.array([1, 1, 0], np.float32) if name == "dino" else np.ones(3, np.float32),
    }
    if small:
        batch["local"] = rng.standard_normal((3, small, LOCAL, LOCAL, 3)).astype(np.float32)
    cells = 4  # a side, of the patches of the ViT and of the last map of the Swin
    hidden = math.ceil(cells * cells * method.get("mask_ratio", 0.3))
    flat = np.stack([rng.permutation(cells * cells) < hidden for _ in range(6)])
    active = np.array([1, 0, 1, 1, 0, 1], np.float32)
    places = np.stack([np.flatnonzero(row) for row in flat])
    masks = (flat * active[:, None].astype(bool)).reshape(6, cells, cells)
    centers = {key: 0.1 * rng.standard_normal(6).astype(np.float32)
               for key in ("center", "patch_center")}  # fmt: skip
    return both, batch, (masks, places, active), centers


def encode(images, p, family, fields, masks=None):
    """The features and the last map's tokens of images (n, h, w, 3)."""
    import torch

    side = images.shape[1] // fields["patch_size"]
    x = embed(images, p, fields["patch_size"])
    if family == "swin":
        flat = torch.zeros(x.shape[:2], dtype=torch.bool)
        if masks is not None:
            flat = masks.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
        x = swin_map(x, p, fields | {"masks": flat}, post_norm=False)
        return x.mean(1), x
    if masks is not None:
        x = torch.where(masks.flatten(1)[..., None], p["mask_token"][0], x)
    positions = p["encoder/pos_embed"]
    old = math.isqrt(positions.shape[1] - 1)
    if old != side:
        grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(
            grid, size=(side, side), mode="bicubic", antialias=True
        )
        positions = torch.cat([positions[:, :1], grid.flatten(2).permute(0, 2, 1)], 1)
    x = torch.cat([p["encoder/cls_token"].expand(len(x), -1, -1), x], 1) + positions
    for block in range(fields["depth"]):
        x = vit_block(x, p, f"encoder/block_{block}", 1e-6)
    x = norm(x, p, "encoder/norm", 1e-6)
    return x[:, 1:].mean(1) if fields.get("global_pool") == "avg" else x[:, 0], x[:, 1:]


def project(x, p, head):
    import torch

    for layer in ("hidden_0", "hidden_1"):
        x = torch.nn.functional.gelu(linear(x, p, f"{head}/{layer}"))
    x = torch.nn.functional.normalize(linear(x, p, f"{head}/bottleneck"), dim=-1)
    weights = torch.nn.functional.normalize(p[f"{head}/prototypes/kernel"].T, dim=-1)
    return torch.nn.functional.linear(x, weights)


def sinkhorn(logits, temperature):
    """As in DINOv2: outputs are rows, samples are columns."""
    q = (logits / temperature).exp().T
    q = q / q.sum()
    outputs, samples = q.shape
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / outputs
        q = q / q.sum(0, keepdim=True) / samples
    return (q * samples).T


def cross(target, logits):
    return -(target * (logits / STUDENT).log_softmax(-1)).sum(-1)


def sharpen(rows, method, center, temperature):
    """The targets of rows (n, k), all of which count."""
    if method.get("centering") == "sinkhorn":
        return sinkhorn(rows, temperature)
    return ((rows - center) / temperature).softmax(-1)


def loss_and_centers(name, student, teacher, batch, hiding, centers):
    """The mean loss of the images that are in the mask, and the centres after the step."""
    import torch

    family, fields, method, small, step = CASES[name]
    first = method.get("warmup_teacher_temp", 0.04)
    temperature = first + (method.get("teacher_temp", 0.04) - first) * min(step / WARMUP, 1)
    weight = method.get("patch_weight", 0.0)
    masks, places, active = hiding
    counted = [i for i in range(3) if batch["mask"][i]]
    views = [(i, v) for i in counted for v in range(2)]
    head = "projection" if method.get("shared_head", True) else "patch_projection"
    ours, theirs, features, patches = {}, {}, {}, {}
    for i, v in views:
        image, row = batch["image"][i, v][None], 2 * i + v
        own = masks[row][None] if weight else None
        x, tokens = encode(image, student, family, fields, own)
        ours[i, v], features[i, v] = project(x[0], student, "projection"), x[0]
        with torch.no_grad():
            y, targets = encode(image, teacher, family, fields)
            theirs[i, v] = project(y[0], teacher, "projection")
        if weight and active[row]:
            patches[i, v] = [
                (
                    project(tokens[0, m], student, head),
                    project(targets[0, m], teacher, head).detach(),
                )
                for m in places[row]
            ]
    for i in counted:
        for n in range(small):
            x, _ = encode(batch["local"][i, n][None], student, family, fields)
            ours[i, 2 + n] = project(x[0], student, "projection")
    rows = sharpen(torch.stack([theirs[key] for key in views]), method, centers["center"],
                   temperature)  # fmt: skip
    targets = dict(zip(views, rows, strict=True))
    total = 0.0
    for i in counted:
        pairs = [cross(targets[i, t], ours[i, v]) for t in range(2) for v in range(2 + small)
                 if v != t]  # fmt: skip
        total = total + torch.stack(pairs).mean()
    after = {"center": torch.stack([theirs[key] for key in views]).mean(0)}
    if weight:
        every = [(key, m) for key in patches for m in range(len(patches[key]))]
        raw = torch.stack([patches[key][m][1] for key, m in every])
        sharp = sharpen(raw, method, centers["patch_center"], temperature)
        by_view = {key: [] for key in patches}
        for (key, m), target in zip(every, sharp, strict=True):
            by_view[key].append(cross(target, patches[key][m][0]))
        for losses in by_view.values():
            total = total + weight * torch.stack(losses).mean() / 2
        after["patch_center"] = raw.mean(0)
    for i, v in views:
        if not method.get("koleo_weight"):
            continue
        x = torch.nn.functional.normalize(features[i, v], dim=-1)
        others = [torch.nn.functional.normalize(features[j, v], dim=-1) for j in counted if j != i]
        near = min(((x - y).norm() for y in others), key=lambda distance: distance.item())
        total = total - method["koleo_weight"] * (near + 1e-8).log() / 2
    after = {key: CENTER_MOMENTUM * centers[key] + (1 - CENTER_MOMENTUM) * mean
             for key, mean in after.items()}  # fmt: skip
    return total / len(counted), after


def loss_and_gradients(name, shapes):
    """The case's loss, the gradient of each of the student's parameters, and the centres."""
    import torch

    (student, teacher), batch, (masks, places, active), centers = make_case(name, shapes)

    def double(arrays):
        return {key: torch.tensor(x, dtype=torch.float64) for key, x in arrays.items()}

    p = {key: x.requires_grad_() for key, x in double(student).items()}
    loss, after = loss_and_centers(
        name, p, double(teacher), double(batch), (torch.tensor(masks), places, active),
        double(centers),
    )  # fmt: skip
    loss.backward()
    grads = {key: torch.zeros_like(x) if x.grad is None else x.grad for key, x in p.items()}
    return (
        loss.item(),
        {path: g.numpy().astype(np.float32) for path, g in grads.items()},
        {key: x.numpy().astype(np.float32) for key, x in after.items()},
    )


def main():
    """Writes the goldens; of the package come the names and the shapes of the parameters."""
    from vitswin_jax.models.pretraining import create_pretraining
    from vitswin_jax.models.registry import create_model
    from vitswin_jax.weights.shapes import parameter_shapes

    arrays = {}
    for name, (family, fields, method, _, _) in CASES.items():
        model = create_pretraining(create_model(family, **fields), **method)
        loss, grads, centers = loss_and_gradients(name, parameter_shapes(model))
        arrays[f"{name}:loss"] = np.float64(loss)
        arrays[f"{name}:grads"] = np.concatenate([grads[path].ravel() for path in sorted(grads)])
        arrays |= {f"{name}:{key}": value for key, value in centers.items()}
    np.savez_compressed(GOLDENS, **arrays)


if __name__ == "__main__":
    main()
