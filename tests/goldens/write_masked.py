"""Writes goldens/masked.*: what the originals' own code of SimMIM and MAE gives for fixed masks.

PYTHONPATH=tests python tests/goldens/write_masked.py --microsoft DIR --simmim DIR --mae DIR

The folders are checkouts of microsoft/Swin-Transformer, microsoft/SimMIM and facebookresearch/mae;
torch and timm have to be installed. Seen with torch 2.13.0 and timm 1.0.31. Each model is filled
with `parity.make_state` of its own keys and run in float64. Of each case the mask, the loss, and of
the first image what the decoder gives are kept.
"""

import argparse
import functools
import gzip
import importlib
import json
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import parity
import torch

torch.library.register_fake = lambda *args, **kwargs: lambda function: function  # torchvision's
warnings.simplefilter("ignore")
SIZE, BATCH = 32, 3
SWIN = {"img_size": SIZE, "patch_size": 2, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4],
        "window_size": 8, "num_classes": 0}  # fmt: skip


def simmim(folder, build):
    """Returns what `build` makes of a checkout's models, of which there are two by one name."""
    for name in [n for n in sys.modules if n.split(".")[0] == "models"]:
        del sys.modules[name]
    package = types.ModuleType("models")
    package.__path__ = [str(folder / "models")]
    sys.modules["models"] = package
    return build(importlib.import_module("models.simmim"))


def of_swin(module, kind, window=None):
    config = types.SimpleNamespace(
        NORM_TARGET=types.SimpleNamespace(ENABLE=window is not None, PATCH_SIZE=window)
    )
    encoder = getattr(module, kind)(**SWIN)
    return module.SimMIM(config, encoder, encoder_stride=4, in_chans=3, patch_size=2)


def of_vit(module):
    encoder = module.VisionTransformerForSimMIM(
        img_size=SIZE, patch_size=4, embed_dim=48, depth=2, num_heads=4, num_classes=0,
        qkv_bias=True, init_values=0.1, use_abs_pos_emb=False, use_shared_rel_pos_bias=True,
        use_mean_pooling=False,
    )  # fmt: skip
    return module.SimMIM(encoder, encoder_stride=4)


def mae(folder):
    import timm.models.vision_transformer as timm_vit

    sys.path.insert(0, str(folder))
    np.float = float  # as numpy had it when their code was written
    block = timm_vit.Block
    timm_vit.Block = lambda *args, qk_scale, **fields: block(*args, **fields)  # noqa: PLW0108
    from models_mae import MaskedAutoencoderViT

    return MaskedAutoencoderViT(
        img_size=SIZE, patch_size=4, embed_dim=192, depth=2, num_heads=3, decoder_embed_dim=32,
        decoder_depth=2, decoder_num_heads=16, norm_pix_loss=True,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    )  # fmt: skip


def run_simmim(model, images, rng):
    side = SIZE // model.patch_size
    cells = np.stack([rng.permutation(16) < 10 for _ in range(BATCH)]).reshape(BATCH, 4, 4)
    masks = np.kron(cells, np.ones((side // 4, side // 4), bool)).astype(bool)
    given = torch.from_numpy(masks)
    painted = model.decoder(model.encoder(images, given.long()))
    return masks, model(images, given.long()), painted[0].permute(1, 2, 0)


def run_mae(model, images, rng):
    noise = torch.from_numpy(rng.random((BATCH, 64)))
    torch.rand = lambda *shape, **options: noise
    loss, predicted, hidden = model(images, 0.75)
    return hidden.numpy().astype(bool).reshape(BATCH, 8, 8), loss, predicted[0]


def case(name, model, run, *, family, method, wrapper="model", **overrides):
    """Returns a case as those of originals.json.gz are, and its arrays."""
    fixed = ("index", "coords_table", "attn_mask", "decoder_pos_embed")
    model = model.double().eval()
    entries = {
        key: {
            "shape": list(tensor.shape),
            "dtype": "int64" if tensor.dtype == torch.int64 else "float32",
            "kind": "buffer" if key.endswith(fixed) else "param",
        }
        for key, tensor in model.state_dict().items()
    }
    values = parity.make_state({k: e for k, e in entries.items() if e["kind"] == "param"})
    model.load_state_dict({k: torch.from_numpy(v) for k, v in values.items()}, strict=False)
    images = parity.make_images(len(name), BATCH, SIZE, SIZE)
    with torch.no_grad():
        masks, loss, painted = run(
            model,
            torch.from_numpy(images).double().permute(0, 3, 1, 2),
            np.random.default_rng(len(name)),
        )
    described = {
        "model": family, "method": method, "overrides": overrides, "seed": len(name),
        "checkpoint": name, "format": "pth", "wrapper": wrapper, "entries": entries,
    }  # fmt: skip
    found = {"masks": masks, "loss": loss.numpy(), "decoded": painted.numpy().astype(np.float32)}
    return described, found


def main():
    parser = argparse.ArgumentParser()
    for name in ("microsoft", "simmim", "mae"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    sizes = {"window_size": 8, "img_size": SIZE}
    v1 = simmim(args.microsoft, lambda module: of_swin(module, "SwinTransformerForSimMIM"))
    v2 = simmim(args.microsoft, lambda module: of_swin(module, "SwinTransformerV2ForSimMIM", 7))
    vit = simmim(args.simmim, of_vit)
    cases = {
        "simmim_swin": case("simmim_swin", v1, run_simmim, family="swin", method={}),
        "simmim_swinv2": case(
            "simmim_swinv2", v2, run_simmim, family="swinv2", method={"norm_window": 7}, **sizes
        ),
        "simmim_vit": case("simmim_vit", vit, run_simmim, family="vit", method={}),
        "mae_vit": case("mae_vit", mae(args.mae), run_mae, family="vit", method={}),
    }
    text = json.dumps({name: described for name, (described, _) in cases.items()})
    (parity.GOLDENS / "masked.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    arrays = {
        f"{name}/{kind}": array
        for name, (_, found) in cases.items()
        for kind, array in found.items()
    }
    np.savez_compressed(parity.GOLDENS / "masked.npz", **arrays)
    for name, (described, found) in cases.items():
        print(name, len(described["entries"]), float(found["loss"]), found["decoded"].shape)


if __name__ == "__main__":
    main()
