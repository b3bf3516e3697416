"""Writes goldens/originals.*: what small models of the originals' own code give.

PYTHONPATH=tests python tests/goldens/write_originals.py --microsoft DIR --tutel DIR --open-clip DIR

The folders are checkouts of microsoft/Swin-Transformer, microsoft/tutel and
mlfoundations/open_clip; torch, timm and transformers have to be installed. Seen with torch 2.13.0,
timm 1.0.31 and transformers 5.23.0. Each model is filled with `parity.make_state` of its own keys
and run in float64 on its case's images. Tutel's two C++ kernels, which move tokens to their places
and back, are written out below.
"""

import argparse
import gzip
import json
import sys
import types
from pathlib import Path

import numpy as np
import parity
import torch

torch.library.register_fake = lambda *args, **kwargs: lambda function: function  # torchvision's


def provide(microsoft, tutel):
    """Makes both projects importable, and what Tutel needs; in torch, one process is a group."""
    sys.path[:0] = [str(microsoft), str(tutel)]
    kernels = types.ModuleType("tutel_custom_kernel")
    kernels.__file__ = "tutel_custom_kernel"
    kernels.invoke_cpu_fp32 = _move_tokens
    sys.modules["tutel_custom_kernel"] = kernels
    load = torch.ops.load_library
    torch.ops.load_library = lambda path: None if path == kernels.__file__ else load(path)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)


def swin_mlp():
    from models.swin_mlp import SwinMLP

    model = SwinMLP(img_size=32, patch_size=2, embed_dim=24, depths=[2, 2], num_heads=[2, 4],
                    window_size=4, num_classes=10)  # fmt: skip
    return model, model.forward_features


def swin_moe(*, cosine):
    from models.swin_transformer_moe import SwinTransformerMoE

    model = SwinTransformerMoE(
        img_size=32, patch_size=2, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4,
        num_classes=10, mlp_fc2_bias=cosine, pretrained_window_sizes=[3, 0], is_gshard_loss=False,
        moe_blocks=[[-1], [1]], num_local_experts=3, cosine_router=cosine,
    )  # fmt: skip
    return model, lambda x: model.forward_features(x)[0]


def _move_tokens(inputs, extra, kernel_type):
    gates, experts, places, tokens, dispatched = inputs
    _, _, capacity = extra
    there = (places < capacity) & (experts >= 0)
    rows = (experts * capacity + places)[there].long()
    gates = gates.reshape(len(tokens), -1)[:, :1]
    dispatched = dispatched.view(-1, tokens.shape[-1])
    if kernel_type == 0:
        dispatched[rows] += gates[there] * tokens[there]
    else:
        tokens.zero_()
        tokens[there] = gates[there] * dispatched[rows]


def open_clip(folder):
    package = types.ModuleType("open_clip")  # whose own __init__ imports tokenizers and more
    package.__path__ = [str(folder / "src" / "open_clip")]
    sys.modules["open_clip"] = package
    from open_clip.layers import QuickGELU
    from open_clip.transformer import VisionTransformer

    tower = VisionTransformer(image_size=64, patch_size=16, width=192, layers=2, heads=3,
                              mlp_ratio=2.0, output_dim=48, act_layer=QuickGELU)  # fmt: skip
    model = torch.nn.ModuleDict({"visual": tower})
    return types.SimpleNamespace(model=model, run=tower), None


def clip():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(hidden_size=192, intermediate_size=384, projection_dim=48,
                              num_hidden_layers=2, num_attention_heads=3, image_size=64,
                              patch_size=16)  # fmt: skip
    model = CLIPVisionModelWithProjection(config)
    return types.SimpleNamespace(model=model, run=lambda x: model(x).image_embeds), None


def siglip():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(hidden_size=192, intermediate_size=384, num_hidden_layers=2,
                                num_attention_heads=3, image_size=64, patch_size=16)  # fmt: skip
    model = SiglipVisionModel(config)
    return types.SimpleNamespace(model=model, run=lambda x: model(x).pooler_output), None


def case(name, made, *, size, model, wrapper=None, format="pth", prefix="", **overrides):
    """Returns a case as those of forward.json.gz are, and its arrays."""
    original, features = made
    run = getattr(original, "run", original)
    original = getattr(original, "model", original).double().eval()
    state = {}
    for key, tensor in original.state_dict().items():
        buffer = key.endswith(("index", "table", "attn_mask", "position_ids", "experts"))
        buffer &= not key.endswith("bias_table")
        buffer |= key.endswith("batched_fc2_bias") and not overrides["mlp_out_bias"]  # zeros
        dtype = "int64" if tensor.dtype == torch.int64 else "float32"
        state[key] = {"shape": list(tensor.shape), "dtype": dtype,
                      "kind": "buffer" if buffer else "param"}  # fmt: skip
    values = parity.make_state({k: e for k, e in state.items() if e["kind"] == "param"})
    original.load_state_dict({k: torch.from_numpy(v) for k, v in values.items()}, strict=False)
    image = {"seed": len(name), "batch": 3, "height": size, "width": size}
    images = torch.from_numpy(parity.make_images(image["seed"], 3, size, size)).double()
    with torch.no_grad():
        images = images.permute(0, 3, 1, 2)
        logits = run(images)
        logits = logits[0] if isinstance(logits, tuple) else logits
        arrays = {"logits": logits.numpy()}
        if features is not None:
            arrays["features"] = features(images).numpy()
    described = {
        "model": model, "overrides": overrides, "num_classes": None, "image": image,
        "tolerance": 2e-5, "checkpoint": name, "format": format, "wrapper": wrapper,
        "entries": {prefix + key: entry for key, entry in state.items()},
    }  # fmt: skip
    return described, arrays


def main():
    parser = argparse.ArgumentParser()
    for name in ("microsoft", "tutel", "open-clip"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    provide(args.microsoft, args.tutel)
    moe = {"size": 32, "model": "swin_moe", "wrapper": "model", "pretrained_window_sizes": [3, 0]}
    cases = {
        "microsoft__swin_mlp": case(
            "swin_mlp", swin_mlp(), size=32, model="swin_mlp", wrapper="model"
        ),
        "microsoft__swin_moe": case("swin_moe", swin_moe(cosine=False), mlp_out_bias=False, **moe),
        "microsoft__swin_moe_cosine": case(
            "swin_moe_cosine", swin_moe(cosine=True), mlp_out_bias=True, **moe
        ),
        "open_clip__quickgelu": case(
            "openai", open_clip(args.open_clip), size=64, model="vit", act="quick_gelu"
        ),
        "huggingface__clip": case(
            "clip", clip(), size=64, model="vit", format="safetensors", act="quick_gelu"
        ),
        "huggingface__siglip": case("siglip", siglip(), size=64, model="vit", format="safetensors"),
    }
    text = json.dumps({name: described for name, (described, _) in cases.items()})
    packed = gzip.compress(text.encode(), mtime=0)
    (parity.GOLDENS / "originals.json.gz").write_bytes(packed)
    arrays = {
        f"{name}/{kind}": array
        for name, (_, found) in cases.items()
        for kind, array in found.items()
    }
    np.savez_compressed(parity.GOLDENS / "originals.npz", **arrays)
    for name, (described, found) in cases.items():
        print(name, len(described["entries"]), {kind: a.shape for kind, a in found.items()})


if __name__ == "__main__":
    main()
