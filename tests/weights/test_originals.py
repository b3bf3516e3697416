"""Files of the originals' own code, whose names differ from timm's, give what timm's models give.

timm's small models of write_zoo.py are named anew, as Meta's and BAAI's repositories name them.
"""

import re

import jax
import numpy as np
import parity
import pytest
from applied import apply

import vitswin_jax
from vitswin_jax.core.types import UserError
from vitswin_jax.nn.rotary import Rotary
from vitswin_jax.weights.formats.pth_write import write_pth

GIVEN = parity.read_cases("zoo")
TOLERANCE = 2e-5  # of the standard deviation
EVA = (
    (r"attn\.([qv])_proj\.bias", r"attn.\1_bias"), ("mlp.fc1_g", "mlp.w1"), ("mlp.fc1_x", "mlp.w2"),
    ("mlp.fc2", "mlp.w3"), ("mlp.norm", "mlp.ffn_ln"), ("attn.norm", "attn.inner_attn_ln"),
)  # fmt: skip
PE = (
    ("patch_embed.proj", "conv1"), ("pos_embed", "positional_embedding"),
    ("cls_token", "class_embedding"),
    ("norm_pre", "ln_pre"), (r"^norm\.", "ln_post."), ("gamma_", "ls_"), (r"(ls_\d)", r"\1.gamma"),
    (r"blocks\.(\d+)\.norm", r"transformer.resblocks.\1.ln_"), ("^blocks", "transformer.resblocks"),
    (r"resblocks(\.\d+)\.attn\.qkv\.", r"resblocks\1.attn.in_proj_"),
    (r"attn\.proj", "attn.out_proj"),
    ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("attn_pool.latent", "attn_pool.probe"),
    ("attn_pool.norm", "attn_pool.layernorm"), ("attn_pool.proj", "attn_pool.attn.out_proj"),
    ("^head.weight", "proj"),
)  # fmt: skip
META = (
    ("gamma_(.)", r"ls\1.gamma"), ("reg_token", "storage_tokens"), ("fc1_g", "w1"), ("fc1_x", "w2"),
    ("mlp.fc2", "mlp.w3"),
)  # fmt: skip


def renamed(state, changes):
    for expression, replacement in changes:
        state = {re.sub(expression, replacement, name): array for name, array in state.items()}
    return state


def as_perception(state):
    state = {
        name: array[0] if name in ("pos_embed", "cls_token") else array
        for name, array in state.items()
    }
    for kind in ("weight", "bias"):
        if f"attn_pool.q.{kind}" in state:
            parts = [state.pop(f"attn_pool.{part}.{kind}") for part in ("q", "kv")]
            state[f"attn_pool.attn.in_proj_{kind}"] = np.concatenate(parts)
    state = renamed(state, PE)
    state["class_embedding"] = state["class_embedding"].reshape(-1)
    if "proj" in state:
        state["proj"] = np.ascontiguousarray(state["proj"].T)
        state.pop("head.bias")
    return {f"visual.{name}": array for name, array in state.items()} | {"logit_scale": np.ones(())}


def as_meta(state):
    state = renamed(state, META)
    for block in range(2):
        place = f"blocks.{block}.attn."
        q, v = (state.pop(f"{place}{part}_bias") for part in "qv")
        state[f"{place}qkv.bias"] = np.concatenate([q, np.full_like(q, 7), v])
        state[f"{place}qkv.bias_mask"] = np.concatenate([np.ones_like(q), 0 * q, np.ones_like(q)])
    rotary = Rotary(type="centred", temperature=100.0)
    state["rope_embed.periods"] = rotary.periods(12)
    return state | {"mask_token": np.ones((1, 48), np.float32)}


def as_eva(state):
    angles = {"rope.freqs_cos": np.ones((16, 12), np.float32)}
    return renamed(state, EVA) | angles | {"blocks.0.attn." + n: a for n, a in angles.items()}


CASES = {  # golden: (the original's file, arguments of load_pretrained)
    "timm-dinov3_gated_qkvb": (as_meta, {}),
    "timm-eva02_clip": (as_eva, {"name": "eva02_large_patch14_clip_336"}),
    "timm-eva": (as_eva, {"name": "eva_giant_patch14_224"}),
    "timm-pe_core": (as_perception, {"name": "vit_pe_core_large_patch14_336"}),
    "timm-pe_spatial": (
        as_perception, {"name": "vit_pe_spatial_small_patch16_512", "global_pool": "avg"}
    ),
}  # fmt: skip


def load(name, tmp_path, **arguments):
    make, own = CASES[name]
    state = make(parity.make_state(GIVEN[name]["entries"]))
    write_pth(tmp_path / "model.pth", state)
    return vitswin_jax.load_pretrained(tmp_path / "model.pth", **own, **arguments)


@pytest.mark.parametrize("name", CASES)
def test_an_originals_file_gives_what_timms_model_gives(name, tmp_path):
    case = GIVEN[name]
    own = {} if "dinov3" in name else {"num_heads": 4}
    model, variables = load(name, tmp_path, **own)
    with np.load(parity.GOLDENS / "zoo.npz") as arrays:
        want = arrays[name]
    if "core" in name:  # whose projection has no bias
        want = want - parity.make_state(case["entries"])["head.bias"]
    with jax.default_matmul_precision("highest"):
        got = apply(model, variables, parity.make_images(7, 2, *case["size"]))
    assert np.abs(np.asarray(got, np.float64) - want).max() <= TOLERANCE * want.std()


def test_a_perception_encoder_is_not_taken_for_a_clip(tmp_path):
    write_pth(
        tmp_path / "model.pth", as_perception(parity.make_state(GIVEN["timm-pe_core"]["entries"]))
    )
    with pytest.raises(UserError, match="pools by attention, as Perception Encoder's"):
        vitswin_jax.load_pretrained(tmp_path / "model.pth", num_heads=4, act="gelu")
