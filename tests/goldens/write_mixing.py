"""Writes goldens/mixing.npz: what timm's Mixup makes of six random images, by mode.

python tests/goldens/write_mixing.py

Made with timm 1.0.31. For each mode: the draws it made (`share`, `is_cutmix`, `boxes` as top,
bottom, left, right, zeros where none was drawn; one, three or six of each), and the images and
targets that came out, of five classes with label smoothing 0.1.
"""

from pathlib import Path

import numpy as np
import torch

register = torch.library.register_fake
torch.library.register_fake = lambda name, *rest, **more: (
    (lambda function: function)
    if str(name).startswith("torchvision::")
    else register(name, *rest, **more)
)

from timm.data import mixup  # noqa: E402

LABELS = [3, 1, 4, 1, 0, 2]


def record(mode, images):
    np.random.seed({"batch": 2, "pair": 1, "elem": 1}[mode])
    mixing = mixup.Mixup(0.8, 1.0, prob=0.9, mode=mode, label_smoothing=0.1, num_classes=5)
    draws, boxes = {}, []

    def keep(method):
        def kept():
            share, is_cutmix = method()
            draws.update(share=np.atleast_1d(share).copy(), is_cutmix=np.atleast_1d(is_cutmix))
            return share, is_cutmix

        return kept

    each = mixing._params_per_elem
    mixing._params_per_batch = keep(mixing._params_per_batch)
    mixing._params_per_elem = lambda count: keep(lambda: each(count))()
    original = mixup.cutmix_bbox_and_lam

    def cut(*rest, **more):
        box, share = original(*rest, **more)
        boxes.append(box)
        return box, share

    mixup.cutmix_bbox_and_lam = cut
    mixed, targets = mixing(torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(LABELS))
    mixup.cutmix_bbox_and_lam = original
    drawn = draws["is_cutmix"] & (draws["share"] != 1)
    placed = np.zeros((len(drawn), 4), np.int32)
    placed[drawn] = boxes
    return draws | {
        "boxes": placed,
        "images": mixed.permute(0, 2, 3, 1).numpy(),
        "targets": targets.numpy(),
    }


def main():
    images = np.random.default_rng(0).normal(size=(6, 9, 12, 3)).astype(np.float32)
    goldens = {"inputs": images, "labels": np.array(LABELS, np.int32)}
    for mode in ("batch", "pair", "elem"):
        goldens |= {f"{mode} {key}": value for key, value in record(mode, images.copy()).items()}
    np.savez_compressed(Path(__file__).parent / "train" / "mixing.npz", **goldens)


if __name__ == "__main__":
    main()
