"""Peers in Flax: Linen, NNX, and Keras on its JAX backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vitswin_jax.benchmark.peers.work import Job, Work, jax_peer


def transformers_flax(job: Job) -> Work:
    """Returns the work of transformers' `FlaxViTForImageClassification`."""
    import jax.numpy as jnp
    from transformers import FlaxViTForImageClassification, ViTConfig

    fields, weights = job["fields"], Path(job["weights"])
    folder = _beside(weights, "flax")
    config = ViTConfig(
        hidden_size=fields["embed_dim"],
        num_hidden_layers=fields["depth"],
        num_attention_heads=fields["num_heads"],
        intermediate_size=round(fields["embed_dim"] * fields["mlp_ratio"]),
        patch_size=fields["patch_size"],
        image_size=job["images"].shape[1],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=job["num_classes"],
    )
    config.save_pretrained(folder)
    model = FlaxViTForImageClassification.from_pretrained(
        folder, from_pt=True, dtype=getattr(jnp, job["dtype"])
    )

    def apply(params: Any, images: Any) -> Any:
        return model(images.transpose(0, 3, 1, 2), params=params).logits.astype(jnp.float32)

    return jax_peer(job, apply, model.params)


def _google_params(job: Job) -> Any:
    from flax.training.checkpoints import convert_pre_linen
    from flax.traverse_util import unflatten_dict

    with np.load(job["weights"]) as arrays:
        params = unflatten_dict({key: arrays[key] for key in arrays.files}, sep="/")
    return convert_pre_linen(params)  # Flax counts modules by their class since


def vit_jax(job: Job) -> Work:
    """Returns the work of google-research/vision_transformer's ViT."""
    from types import SimpleNamespace

    from vit_jax import models_vit

    fields = job["fields"]
    model = models_vit.VisionTransformer(
        num_classes=job["num_classes"],
        patches=SimpleNamespace(size=(fields["patch_size"],) * 2),
        hidden_size=fields["embed_dim"],
        transformer={
            "num_layers": fields["depth"],
            "num_heads": fields["num_heads"],
            "mlp_dim": round(fields["embed_dim"] * fields["mlp_ratio"]),
            "dropout_rate": 0.0,
            "attention_dropout_rate": 0.0,
        },
    )

    def apply(params: Any, images: Any) -> Any:
        return model.apply({"params": params}, images, train=False)

    return jax_peer(job, apply, _google_params(job))


def big_vision(job: Job) -> Work:
    """Returns the work of google-research/big_vision's ViT."""
    from big_vision.models import vit

    fields = job["fields"]
    model = vit.Model(
        job["num_classes"],
        patch_size=(fields["patch_size"],) * 2,
        width=fields["embed_dim"],
        depth=fields["depth"],
        num_heads=fields["num_heads"],
        mlp_dim=round(fields["embed_dim"] * fields["mlp_ratio"]),
        pool_type="tok",
        dtype_mm=job["dtype"],
    )
    params = vit.fix_old_checkpoints(_google_params(job))

    def apply(params: Any, images: Any) -> Any:
        return model.apply({"params": params}, images)[0]

    return jax_peer(job, apply, params)


def _beside(weights: Path, name: str) -> Path:
    """Returns a folder with the weights of a folder, for a configuration of the peer's own."""
    folder = weights.with_name(name)
    folder.mkdir(exist_ok=True)
    if not (link := folder / "model.safetensors").exists():
        link.symlink_to(weights / link.name)
    return folder


def keras_hub(job: Job) -> Work:
    """Returns the work of KerasHub's model by Keras' `stateless_call`, on the JAX backend."""
    import os

    os.environ["KERAS_BACKEND"] = "jax"
    import keras_hub as library

    classifies = bool(job["num_classes"])
    kind = library.models.ImageClassifier if classifies else library.models.Backbone
    model = kind.from_preset(job["weights"], **({"preprocessor": None} if classifies else {}))
    params = [variable.value for variable in model.trainable_variables]
    rest = [variable.value for variable in model.non_trainable_variables]

    def apply(params: Any, images: Any) -> Any:
        outputs, _ = model.stateless_call(params, rest, images, training=False)
        return outputs if classifies else outputs[:, 0]

    return jax_peer(job, apply, params)


def jimm(job: Job) -> Work:
    """Returns the work of jimm's NNX model."""
    import jax
    import jimm as library

    kinds = (jax.sharding.AxisType.Auto,)
    jax.set_mesh(jax.make_mesh((1,), ("fsdp",), kinds))  # which its parameters name
    kind = library.VisionTransformer if job["num_classes"] else library.DINOv2Model
    model = kind.from_pretrained(job["weights"])
    model.eval()
    return _nnx(job, model, lambda model, images: model(images))


def bonsai(job: Job) -> Work:
    """Returns the work of JAX ML bonsai's NNX model."""
    from bonsai.models.vit import modeling, params

    fields = job["fields"]
    config = modeling.ModelConfig(
        image_size=job["images"].shape[1:3],
        patch_size=(fields["patch_size"],) * 2,
        num_channels=job["images"].shape[-1],
        hidden_dim=fields["embed_dim"],
        attn_dropout_prob=0.0,
        dropout_prob=0.0,
        num_heads=fields["num_heads"],
        mlp_dim=round(fields["embed_dim"] * fields["mlp_ratio"]),
        eps=1e-12,
        num_layers=fields["depth"],
        num_labels=job["num_classes"],
    )
    model = params.create_vit_from_pretrained(job["weights"], config)
    model.eval()
    return _nnx(job, model, lambda model, images: model(images, rngs=None))


def _nnx(job: Job, model: Any, call: Callable[[Any, Any], Any]) -> Work:
    import jax
    from flax import nnx

    split: Any = nnx.split  # whose overloads do not say that a last `...` gives a third part
    graph, params, rest = split(model, nnx.Param, ...)

    def apply(params: Any, images: Any) -> Any:
        variables = jax.tree.map(lambda leaf: leaf, rest)  # new ones, which this trace may change
        return call(nnx.merge(graph, params, variables), images)

    return jax_peer(job, apply, params)
