"""Writes goldens/models/timm_vit.npz: small ViTs of timm, their weights and what they give.

python tests/goldens/write_timm_vit.py

Made with timm 1.0.31 and torch 2.14.1. A key is "case/images", "case/features", "case/logits", or
"case/weights/" and the name of a parameter. The cases are those that timm computes otherwise than
one might think: attention pooling leaves prefix tokens out, and a convolution leaves pixels out.
"""

from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

SIZES = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2,
         "mlp_ratio": 2.0, "num_classes": 3}  # fmt: skip
CASES = {  # case -> (size of the images, arguments)
    "map": (12, {"global_pool": "map", "class_token": False}),
    "map_class_token": (12, {"global_pool": "map"}),
    "map_registers": (12, {"global_pool": "map", "class_token": False, "reg_tokens": 3}),
    "map_both": (12, {"global_pool": "map", "reg_tokens": 2, "no_embed_class": True}),
    "remainder": (15, {"global_pool": "map", "class_token": False}),
    "remainder_oblong": ((14, 11), {}),
}


def main():
    goldens, rng = {}, np.random.default_rng(0)
    for case, (size, arguments) in CASES.items():
        model = VisionTransformer(img_size=size, **SIZES, **arguments).eval().double()
        state = {
            name: torch.from_numpy(rng.normal(0, 0.3, tensor.shape).astype(np.float16)).double()
            for name, tensor in model.state_dict().items()
        }
        model.load_state_dict(state)
        height, width = (size, size) if isinstance(size, int) else size
        images = rng.normal(0, 1, (2, height, width, 3)).astype(np.float32)
        with torch.no_grad():
            tokens = model.forward_features(torch.from_numpy(images).permute(0, 3, 1, 2).double())
            goldens[f"{case}/features"] = model.forward_head(tokens, pre_logits=True).numpy()
            goldens[f"{case}/logits"] = model.forward_head(tokens).numpy()
        goldens[f"{case}/images"] = images
        for name, array in state.items():
            goldens[f"{case}/weights/{name}"] = array.numpy().astype(np.float16)
    np.savez_compressed(Path(__file__).parent / "models" / "timm_vit.npz", **goldens)


if __name__ == "__main__":
    main()
