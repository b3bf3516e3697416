"""The tensors of a file that are the model: those under a root in their names.

Training code saves a model under keys and prefixes without number: `state_dict`, `module.`,
`_orig_mod.`, `model.backbone.`, `teacher.backbone.`, `params/img/`. None of them has to be known.
Every model has a first block and a patch embedding (`LAYOUTS`); what comes before both of their
names is a root, and the tensors under it are the model's. Decoders, predictors and text towers
have blocks but no patch embedding.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError, listed
from vitswin_jax.weights.formats.read import Contents
from vitswin_jax.weights.formats.tensors import Tensor

log = logger(__name__)

# fmt: off
LAYOUTS = (  # a tensor of the first block, one of the patch embedding
    # Swin and SimMIM: Microsoft, timm
    ("layers.0.blocks.0.(attn.qkv|spatial_mlp).weight", "patch_embed.proj.weight"),
    ("stages.0.blocks.0.attn.meta_mlp.fc1.weight", "patch_embed.proj.weight"),  # timm's V2-CR
    # ViT: timm, DeiT, MAE, DINO, BEiT; DINOv2 has blocks in chunks too
    ("blocks.0.(0.)?attn.(qkv|q_proj).weight", "patch_embed.(proj|backbone.(stem.)?conv).weight"),
    # transformers: Swin, ViT, CLIP and SigLIP
    ("encoder.layers.0.blocks.0.attention.self.query.weight",
     "embeddings.patch_embeddings.projection.weight"),
    ("encoder.layer.0.attention.attention.query.weight",
     "embeddings.patch_embeddings.projection.weight"),
    ("layer.0.attention.q_proj.weight", "embeddings.patch_embeddings.weight"),  # DINOv3
    ("encoder.layers.0.layer_norm1.weight", "embeddings.patch_embedding.weight"),
    ("encoder.layers.0.rms_norm1.weight", "embeddings.patch_embed.weight"),  # AIMv2
    ("trunk.blocks.0.norm_1.weight", "preprocessor.patchifier.proj.weight"),  # AIMv2, Apple's
    # torchvision: ViT; Swin
    ("encoder.layers.encoder_layer_0.self_attention.in_proj_weight", "conv_proj.weight"),
    ("features.1.0.attn.qkv.weight", "features.0.0.weight"),
    # OpenAI's CLIP and open_clip
    ("transformer.resblocks.0.attn.in_proj_weight", "conv1.weight"),
    # Google; big_vision has scanned blocks too
    ("Transformer/encoderblock(_0)?/LayerNorm_0/scale", "embedding/kernel"),
)
# fmt: on

_HEADS = re.compile(
    r"(?:(?:cls_|distillation_)?classifier\.(?:weight|bias)|visual_projection\.weight"
    r"|hidden_states_norms\..*)"
)
"""Heads that transformers has beside its base model, not under it; norms of maps show a detector's
backbone."""

_INSIDE = re.compile(r"_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
"""What PyTorch puts into the names of modules that it wraps: compiled, sharded, recomputed."""

NEVER = {"decoder", "predictor", "optimizer", "opt", "mu", "nu", "exp_avg", "exp_avg_sq"}
"""Keys whose tensors are not the model, where the file has others: halves of autoencoders, and
moments of the optimizer, which have the names of the parameters."""

COPIES: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (("state_dict_ema",), ("model_ema",), "timm's load_state_dict"),
    (("state_dict_ema", "model_ema", "ema", "ema_model"), ("state_dict", "model", "net"),
     "timm's load_state_dict(use_ema=True)"),
    (("state_dict",), ("model",), "timm's load_state_dict"),
    (("teacher",), ("student",), "DINO's, iBOT's and DINOv2's evaluation"),
    (("base_encoder",), ("momentum_encoder",), "MoCo v3's main_lincls.py"),
    (("encoder_q",), ("encoder_k",), "MoCo's main_lincls.py"),
    (("target_encoder",), ("encoder",), "MSN's logistic_eval.py and the paper of I-JEPA"),
    (("target",), ("opt",), "big_vision's load_params"),
)  # fmt: skip
"""(keys taken, keys left, whose code takes them so): of several copies of a model."""


@dataclass(frozen=True)
class Root:
    """A copy of a model in a file, by what comes before the names of its tensors."""

    path: str
    container: str = ""
    """The keys above the state dict, with which `path` begins."""
    heads: bool = False
    """Whether `_HEADS` may be beside the root."""

    @property
    def prefix(self) -> str:
        """The prefix of the model's names in the state dict."""
        return self.path.removeprefix(self.container)

    @property
    def parts(self) -> tuple[str, ...]:
        """The keys and prefixes, one by one."""
        return tuple(part for part in re.split(r"[./]", self.path) if part)


def choose_root(path: Path, contents: Contents, key: str | None) -> Root:
    """Returns the root of the model in a file: the only one, or the one that the original takes.

    `key`, of the user, is one of its keys, or several, joined by dots. A file without any root is
    taken as a whole. Raises UserError for a key that no root has, and for several copies of which
    no original's code takes one.
    """
    roots = _find_roots(contents)
    if key is not None:
        chosen = [root for root in roots if _has(root, key)]
        if not chosen:
            raise UserError(
                f"{path}: has no copy of a model under {key!r}; it has "
                f"{listed(_labels(roots)) or 'none that is known'}."
            )
    else:
        chosen = [root for root in roots if NEVER.isdisjoint(root.parts)] or roots
    if len(chosen) < 2:
        return chosen[0] if chosen else Root("")
    labels = _labels(chosen)
    for root in chosen:
        reasons = [_reason(root, other) for other in chosen if other is not root]
        if all(reasons):
            others = [label for label, other in zip(labels, chosen, strict=True) if other != root]
            log.info(
                "%s: has %d copies of the model; %s is used, as by %s; to use another, give %s@%s",
                path, len(chosen), labels[chosen.index(root)], reasons[0], path.name,
                f" or {path.name}@".join(others[:3]),
            )  # fmt: skip
            return root
    raise UserError(
        f"{path}: has {len(chosen)} models, {listed(labels)}; choose one, such as "
        f"{path.name}@{labels[0]}."
    )


def take_root(contents: Contents, root: Root) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the tensors under a root, by their names there, and the names of all others."""
    others = [other.path for other in _find_roots(contents) if len(other.path) > len(root.path)]
    beside = re.sub(r"[^./]+[./]$", "", root.path) if root.heads else root.path
    kept: dict[str, Tensor] = {}
    left_out = []
    for name, tensor in contents.tensors.items():
        own = name.startswith(root.path) and not name.startswith(tuple(others))
        rest = name.removeprefix(root.path if own else beside)
        head = name.startswith(beside) and _HEADS.fullmatch(rest)
        if (own or head) and contents.containers.get(name, "") == root.container:
            kept[_INSIDE.sub("", rest)] = tensor
        else:
            left_out.append(name.removeprefix(root.container))
    return kept, left_out


def _find_roots(contents: Contents) -> list[Root]:
    """Returns the roots that have a first block and a patch embedding, or else a first block."""
    whole: list[Root] = []
    halves: list[Root] = []
    for block, patches in LAYOUTS:
        block_of, patches_of = _expression(block), _expression(patches)
        embedded = {found[1] for found in _matches(patches_of, contents.tensors)}
        for found in _matches(block_of, contents.tensors):
            container = contents.containers.get(found[0], "")
            root = Root(found[1], container, heads=block.startswith("encoder."))
            (whole if found[1] in embedded else halves).append(root)
    return list(dict.fromkeys(whole)) or halves[:1]


def _matches(expression: re.Pattern[str], names: Iterable[str]) -> Iterator[re.Match[str]]:
    return (found for name in names if (found := expression.fullmatch(name)))


@functools.cache
def _expression(names: str) -> re.Pattern[str]:
    """Returns an expression for names below a root, the first group, with wrappers in between."""
    dotted = names.replace(".", rf"\.(?:{_INSIDE.pattern})*")
    return re.compile(rf"((?:.*[./])?){dotted}")


def _has(root: Root, key: str) -> bool:
    """Returns whether a key of the user's, of one part or several, is in a root's path."""
    wanted = tuple(part for part in re.split(r"[./]", key) if part)
    if not wanted:
        return not root.parts
    starts = range(len(root.parts) - len(wanted) + 1)
    return any(root.parts[i : i + len(wanted)] == wanted for i in starts)


def _reason(root: Root, other: Root) -> str | None:
    """Returns the code that takes a root and not the other, or None if none is known."""
    ours, theirs = (set(a.parts) - set(b.parts) for a, b in ((root, other), (other, root)))
    for taken, left, whose in COPIES:
        if not ours.isdisjoint(taken) and not theirs.isdisjoint(left):
            return whose
    return None


def _labels(roots: list[Root]) -> list[str]:
    """Returns the shortest key that chooses each of several roots, where one part does."""
    labels = []
    for root in roots:
        alone = (
            p for p in root.parts if all(p not in other.parts for other in roots if other != root)
        )
        labels.append(next(alone, ".".join(root.parts)))
    return labels
