"""SimMIM and MAE once more, in PyTorch and from the papers, to hold ours against.

python tests/masked_torch.py writes goldens/masked.npz: of each of CASES the loss for a fixed
mask and its gradients, end to end in the order of their names, of parameters and images that
`make_case` draws by numpy; computed in float64.

This code imports nothing of the package. Windows are not cut: every token attends to
every other, and a mask of -inf says who shares its window and its part of the image. Parameters
have our names.
"""

import math
from pathlib import Path

import numpy as np
from gradients import draw_params

GOLDENS = Path(__file__).parent / "goldens" / "models" / "masked.npz"
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2,
       "num_classes": 0}  # fmt: skip
SWIN = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 2),
        "window_size": 4, "mlp_ratio": 1.0, "num_classes": 0}  # fmt: skip
SHARED = {"pos_embed": "relative", "pos_embed_at": "shared", "init_values": 0.1}
CASES = {  # name: (family, the encoder's fields, the method's)
    "simmim_swin": ("swin", SWIN, {"method": "simmim", "mask_patch": 4}),
    "simmim_swinv2": ("swinv2", SWIN | {"pretrained_window_sizes": (0, 0)},
                      {"method": "simmim", "mask_patch": 4, "norm_window": 5}),
    "simmim_vit": ("vit", VIT | SHARED, {"method": "simmim", "mask_patch": 4}),
    "mae_vit": ("vit", VIT, {"method": "mae", "norm_pix": True, "decoder_dim": 8,
                             "decoder_depth": 2, "decoder_heads": 2}),
}  # fmt: skip


def make_case(name, shapes):
    """Parameters by their names, three images and their masks, which hide equally many patches."""
    _, fields, method = CASES[name]
    rng = np.random.default_rng(sum(map(ord, name)))
    params = draw_params(rng, shapes)
    side = fields["img_size"] // fields["patch_size"]
    if method["method"] == "mae":
        params["encoder/pos_embed"] = sincos(side, fields["embed_dim"]).astype(np.float32)
    images = rng.standard_normal((3, 16, 16, 3)).astype(np.float32)
    hidden = 12 if method["method"] == "mae" else 10  # of 16 squares of 4 pixels
    squares = np.stack([rng.permutation(16) < hidden for _ in range(3)]).reshape(3, 4, 4)
    masks = np.kron(squares, np.ones((1, side // 4, side // 4), bool)).astype(bool)
    return params, images, masks


def sincos(side, dim):
    """MAE's fixed positions, by the definition: a row for the class token, then row by row."""
    table = np.zeros((1 + side * side, dim))
    for y in range(side):
        for x in range(side):
            for i in range(dim // 4):
                w = 10_000 ** (-i / (dim / 4))
                row = table[1 + y * side + x]
                for place, value in enumerate((math.sin(x * w), math.cos(x * w),
                                               math.sin(y * w), math.cos(y * w))):  # fmt: skip
                    row[place * dim // 4 + i] = value
    return table[None]


def norm(x, p, name, eps):
    import torch

    return torch.nn.functional.layer_norm(
        x, x.shape[-1:], p[f"{name}/scale"], p[f"{name}/bias"], eps
    )


def linear(x, p, name):
    y = x @ p[f"{name}/kernel"]
    return y + p[f"{name}/bias"] if f"{name}/bias" in p else y


def mlp(x, p, name):
    import torch

    return linear(torch.nn.functional.gelu(linear(x, p, f"{name}/fc1")), p, f"{name}/fc2")


def attention(x, p, name, bias=None):
    """Multi-head attention of tokens (b, n, c); `bias` (heads, n, n) may be -inf."""
    import torch

    kernel = p[f"{name}/qkv/kernel"]
    q, k, v = torch.einsum("bnc,cthd->tbhnd", x, kernel)
    if (biases := p.get(f"{name}/qkv/bias")) is not None:
        q, k, v = (y + b[None, :, None] for y, b in zip((q, k, v), biases, strict=True))
    if f"{name}/logit_scale" in p:  # Swin V2: cosine, and no bias of the key
        q = q + p[f"{name}/q_bias"][None, :, None]
        v = v + p[f"{name}/v_bias"][None, :, None]
        q, k = (torch.nn.functional.normalize(y, dim=-1) for y in (q, k))
        logits = torch.einsum("bhqd,bhkd->bhqk", q, k)
        logits = logits * p[f"{name}/logit_scale"].clamp(max=math.log(100.0)).exp()
    else:
        logits = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(kernel.shape[-1])
    if bias is not None:
        logits = logits + bias
    out = torch.einsum("bhqk,bhkd->bqhd", logits.softmax(-1), v)
    return torch.einsum("bqhd,hdc->bqc", out, p[f"{name}/proj/kernel"]) + p[f"{name}/proj/bias"]


def vit_block(x, p, name, eps, bias=None):
    def scaled(y, which):
        return y * p[f"{name}/{which}/gamma"] if f"{name}/{which}/gamma" in p else y

    x = x + scaled(attention(norm(x, p, f"{name}/norm1", eps), p, f"{name}/attn", bias), "ls1")
    return x + scaled(mlp(norm(x, p, f"{name}/norm2", eps), p, f"{name}/mlp"), "ls2")


def patches_of(images, side):
    """(b, h, w, 3) as (b, n, side * side * 3), row by row."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // side, side, w // side, side, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // side) * (w // side), side * side * c)


def embed(images, p, side):
    kernel = p["encoder/patch_embed/proj/kernel"]  # (side, side, 3, c)
    return patches_of(images, side) @ kernel.flatten(0, 2) + p["encoder/patch_embed/proj/bias"]


def shared_bias(p, side):
    """Biases (heads, n, n) of a class token and a grid, from a table with three rows more."""
    import torch

    table = p["encoder/relative_position_bias_table"]
    rows = torch.empty(1 + side * side, 1 + side * side, dtype=torch.long)
    last, wide = len(table), 2 * side - 1
    rows[0, :], rows[:, 0], rows[0, 0] = last - 3, last - 2, last - 1
    for q in range(side * side):
        for k in range(side * side):
            dy, dx = q // side - k // side, q % side - k % side
            rows[1 + q, 1 + k] = (dy + side - 1) * wide + dx + side - 1
    return table[rows].permute(2, 0, 1)


def window_bias(p, name, side, window, shift):
    """Biases (heads, n, n) of a whole map: -inf for pairs that do not share a window."""
    import torch

    wide = 2 * window - 1
    if f"{name}/relative_position_bias_table" in p:
        table = p[f"{name}/relative_position_bias_table"]
    else:
        offsets = torch.tensor(
            [[dy, dx] for dy in range(1 - window, window) for dx in range(1 - window, window)],
            dtype=torch.float64,
        )
        scaled = 8 * offsets / (window - 1)
        logs = torch.sign(scaled) * torch.log2(1 + scaled.abs()) / 3
        hidden = torch.relu(linear(logs, p, f"{name}/cpb_mlp/fc1"))
        table = 16 * torch.sigmoid(linear(hidden, p, f"{name}/cpb_mlp/fc2"))
    shared = torch.zeros(side * side, side * side, dtype=torch.bool)
    rows = torch.zeros(side * side, side * side, dtype=torch.long)

    def home(at):  # window of the rolled map, and place in it; those that came round stand apart
        rolled = (at - shift) % side
        return rolled // window, rolled % window, at < shift

    for q in range(side * side):
        for k in range(side * side):
            pairs = [(home(q // side), home(k // side)), (home(q % side), home(k % side))]
            if all(a[0] == b[0] and a[2] == b[2] for a, b in pairs):
                shared[q, k] = True
                dy, dx = (a[1] - b[1] for a, b in pairs)
                rows[q, k] = (dy + window - 1) * wide + dx + window - 1
    return table[rows].masked_fill(~shared[..., None], -math.inf).permute(2, 0, 1)


def swin_map(x, p, fields, *, post_norm):
    """The normed last map (b, n, c) of embedded patches."""
    import torch

    side, window, eps = fields["img_size"] // fields["patch_size"], fields["window_size"], 1e-5
    x = norm(x, p, "encoder/patch_embed/norm", eps)
    x = torch.where(fields["masks"][..., None], p["mask_token"][0], x)
    for stage, depth in enumerate(fields["depths"]):
        for block in range(depth):
            name = f"encoder/stage_{stage}/block_{block}"
            shift = window // 2 if block % 2 and side > window else 0
            bias = window_bias(p, f"{name}/attn", side, window, shift)
            if post_norm:
                x = x + norm(attention(x, p, f"{name}/attn", bias), p, f"{name}/norm1", eps)
                x = x + norm(mlp(x, p, f"{name}/mlp"), p, f"{name}/norm2", eps)
            else:
                y = norm(x, p, f"{name}/norm1", eps)
                x = x + attention(y, p, f"{name}/attn", bias)
                x = x + mlp(norm(x, p, f"{name}/norm2", eps), p, f"{name}/mlp")
        if stage + 1 < len(fields["depths"]):
            name = f"encoder/stage_{stage}/downsample"
            grid = x.reshape(len(x), side, side, -1)
            around = [grid[:, dy::2, dx::2] for dy, dx in ((0, 0), (1, 0), (0, 1), (1, 1))]
            x, side = torch.cat(around, -1).flatten(1, 2), side // 2
            if post_norm:
                x = norm(linear(x, p, f"{name}/reduction"), p, f"{name}/norm", eps)
            else:
                x = linear(norm(x, p, f"{name}/norm", eps), p, f"{name}/reduction")
    return norm(x, p, "encoder/norm", eps)


def vit_map(images, p, fields, masks):
    import torch

    side = fields["img_size"] // fields["patch_size"]
    x = torch.where(masks[..., None], p["mask_token"][0], embed(images, p, fields["patch_size"]))
    x = torch.cat([p["encoder/cls_token"].expand(len(x), -1, -1), x], 1)
    for block in range(fields["depth"]):
        x = vit_block(x, p, f"encoder/block_{block}", 1e-6, shared_bias(p, side))
    return norm(x, p, "encoder/norm", 1e-6)[:, 1:]


def local_target(images, window):
    """Pixels by the mean and the deviation of the square around them, one pixel at a time."""
    import torch

    out, r = torch.empty_like(images), window // 2
    for y in range(images.shape[1]):
        for x in range(images.shape[2]):
            square = images[:, max(y - r, 0) : y + r + 1, max(x - r, 0) : x + r + 1].flatten(1, 2)
            out[:, y, x] = (images[:, y, x] - square.mean(1)) / (square.var(1) + 1e-6).sqrt()
    return out


def simmim_loss(p, images, masks, family, fields, *, norm_window=None, **_):
    import torch

    side = fields["patch_size"]
    flat = masks.flatten(1)
    if family == "vit":
        x = vit_map(images, p, fields, flat)
    else:
        x = embed(images, p, side)
        x = swin_map(x, p, fields | {"masks": flat}, post_norm=family == "swinv2")
    cells = int(math.sqrt(x.shape[1]))
    x = linear(x, {k: v.squeeze() for k, v in p.items() if k.startswith("decoder")}, "decoder")
    x = x.reshape(len(x), cells, cells, -1).permute(0, 3, 1, 2)
    painted = torch.nn.functional.pixel_shuffle(x, 16 // cells).permute(0, 2, 3, 1)
    target = images if norm_window is None else local_target(images, norm_window)
    pixels = masks.repeat_interleave(side, 1).repeat_interleave(side, 2)
    return (painted - target).abs()[pixels].mean()


def mae_loss(p, images, masks, family, fields, *, norm_pix, decoder_depth, **_):
    import torch

    assert family == "vit"
    side, flat, total = fields["patch_size"], masks.flatten(1), 0.0
    grid = fields["img_size"] // side
    for image, hidden in zip(images, flat, strict=True):  # one at a time: no gathering, no order
        x = embed(image[None], p, side)[0] + p["encoder/pos_embed"][0, 1:].detach()
        first = p["encoder/cls_token"][0] + p["encoder/pos_embed"][0, :1].detach()
        x = torch.cat([first, x[~hidden]])[None]
        for block in range(fields["depth"]):
            x = vit_block(x, p, f"encoder/block_{block}", 1e-6)
        x = linear(norm(x, p, "encoder/norm", 1e-6), p, "decoder/embed")[0]
        whole = p["mask_token"][0].expand(grid * grid, -1).clone()
        whole[~hidden] = x[1:]
        x = torch.cat([x[:1], whole])[None] + torch.tensor(sincos(grid, x.shape[-1]))
        for block in range(decoder_depth):
            x = vit_block(x, p, f"decoder/block_{block}", 1e-6)
        x = linear(norm(x, p, "decoder/norm", 1e-6), p, "decoder/pred")[0, 1:]
        target = patches_of(image[None], side)[0]
        if norm_pix:
            target = (target - target.mean(1, keepdim=True)) / torch.sqrt(
                target.var(1, keepdim=True) + 1e-6
            )
        total = total + ((x - target) ** 2)[hidden].mean()
    return total / len(images)


def loss_and_gradients(name, shapes):
    """The case's loss and the gradient of each parameter, 0 of what is fixed."""
    import torch

    family, fields, method = CASES[name]
    params, images, masks = make_case(name, shapes)
    p = {path: torch.tensor(v, dtype=torch.float64).requires_grad_() for path, v in params.items()}
    loss_of = mae_loss if method["method"] == "mae" else simmim_loss
    loss = loss_of(
        p, torch.tensor(images, dtype=torch.float64), torch.tensor(masks), family, fields, **method
    )
    loss.backward()
    none = {path: torch.zeros_like(v) for path, v in p.items() if v.grad is None}
    grads = {path: none.get(path, v.grad) for path, v in p.items()}
    return loss.item(), {path: g.numpy().astype(np.float32) for path, g in grads.items()}


def main():
    """Writes the goldens; of the package come the names and the shapes of the parameters."""
    from vitswin_jax.models.pretraining import create_pretraining
    from vitswin_jax.models.registry import create_model
    from vitswin_jax.weights.shapes import parameter_shapes

    arrays = {}
    for name, (family, fields, method) in CASES.items():
        model = create_pretraining(create_model(family, **fields), **method)
        loss, grads = loss_and_gradients(name, parameter_shapes(model))
        arrays[f"{name}:loss"] = np.float64(loss)
        arrays[f"{name}:grads"] = np.concatenate([grads[path].ravel() for path in sorted(grads)])
    GOLDENS.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDENS, **arrays)


if __name__ == "__main__":
    main()
