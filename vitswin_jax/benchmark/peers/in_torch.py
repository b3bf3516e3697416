"""Peers in PyTorch, eager or compiled by `torch.compile` with its defaults."""

from __future__ import annotations

from typing import Any

from vitswin_jax.benchmark.peers.work import Job, Work, torch_work


def timm(job: Job, *, compiled: bool = False) -> Work:
    """Returns the work of `timm.create_model`'s model."""
    import torch

    # torchvision has no build for every torch; none of its compiled operators is needed here.
    register = torch.library.register_fake
    torch.library.register_fake = lambda name, *rest, **more: (
        (lambda function: function)
        if str(name).startswith("torchvision::")
        else register(name, *rest, **more)
    )
    import timm as library
    from safetensors.torch import load_file

    size = job["images"].shape[1:3]
    model = library.create_model(
        job["name"], img_size=size, num_classes=job["num_classes"], drop_path_rate=0.0
    )
    model.load_state_dict(load_file(job["weights"]))
    return torch_work(job, model, compiled=compiled)


def transformers(job: Job) -> Work:
    """Returns the work of a classifier of transformers, or of DINOv2's pooled features."""
    import torch
    from transformers import AutoModel, AutoModelForImageClassification

    classifies = bool(job["num_classes"])
    kind: Any = AutoModelForImageClassification if classifies else AutoModel
    model = kind.from_pretrained(job["weights"])

    class Output(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Any) -> Any:
            outputs = self.model(images)
            return outputs.logits if classifies else outputs.pooler_output

    return torch_work(job, Output(), compiled=False)
