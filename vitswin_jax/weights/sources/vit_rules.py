"""Names of Vision Transformers in their files and ours: timm's, Hugging Face's and Google's."""

from __future__ import annotations

from vitswin_jax.weights.sources.layouts import conv, dense, dense_out, map_vector, row, vector
from vitswin_jax.weights.sources.rules import Rule, affine, norm

# fmt: off
BLOCK, BLOCK_ = "blocks.{i}.", "block_{i}/"
MLP, MLP_ = BLOCK + "mlp.", BLOCK_ + "mlp/"
QKV = tuple(BLOCK + f"attn.{part}_proj." for part in "qkv")
_JOINT_QKV = affine(BLOCK + "attn.qkv.",           BLOCK_ + "attn/qkv/", dense, vector)
_APART_QKV = (
    *affine(QKV,                                   BLOCK_ + "attn/qkv/", dense, vector),
    Rule(BLOCK + "attn.{p:[qkv]}_proj.bias",      BLOCK_ + "attn/{p}_bias",            vector),
)
_QV_BIAS = (Rule(BLOCK + "attn.{p:[qkv]}_bias",   BLOCK_ + "attn/{p}_bias",            vector),)
_JOINT_MLP = affine(MLP + "fc1.",                  MLP_ + "fc1/")
_APART_MLP = affine((MLP + "fc1_g.", MLP + "fc1_x."), MLP_ + "fc1/", beside=True)
_LS = (Rule(BLOCK + "ls{k}.gamma",                BLOCK_ + "ls{k}/gamma"),)
_GAMMA = (Rule(BLOCK + "gamma_{k}",               BLOCK_ + "ls{k}/gamma"),)  # DeiT-3, EVA
_REST = (
    *affine("patch_embed.proj.",                   "patch_embed/proj/", conv),
    *norm("patch_embed.norm.",                     "patch_embed/norm/"),
    Rule("{t:(cls|dist|reg)_token|pos_embed}",    "{t}"),
    *norm(BLOCK + "{n:norm[12]}.",                 BLOCK_ + "{n}/"),
    *norm(BLOCK + "attn.{n:([qk]_)?norm}.",        BLOCK_ + "attn/{n}/"),
    *affine(BLOCK + "attn.proj.",                  BLOCK_ + "attn/proj/", dense_out),
    Rule(BLOCK + "rope.freqs",                    BLOCK_ + "rope_freqs"),
    *norm(MLP + "norm.",                           MLP_ + "norm/"),
    *affine(MLP + "fc2.",                          MLP_ + "fc2/"),
    *affine(MLP + "w12.",                          MLP_ + "fc1/"),  # DINOv2-g
    *affine(MLP + "w3.",                           MLP_ + "fc2/"),
    *norm("{n:norm|fc_norm|norm_pre}.",            "{n}/"),
    Rule("attn_pool.latent",                      "attn_pool/latent",                  row),
    *affine("attn_pool.{p:q|kv}.",                 "attn_pool/{p}/", dense, vector),
    *affine("attn_pool.proj.",                     "attn_pool/proj/", dense_out),
    *norm("attn_pool.norm.",                       "attn_pool/norm/"),
    *affine("attn_pool.mlp.{f:fc[12]}.",           "attn_pool/mlp/{f}/"),
    *affine("pre_logits.fc.",                      "pre_logits/"),
    *affine("{h:head|head_dist}.",                 "{h}/"),
    # Of pre-training: MAE's decoder, heads of MoCo v3, DINO, iBOT and MSN, BEiT's head and layers,
    # and the pyramids of segmenters.
    Rule("{m:mask_token|masked_embed}",           None),
    Rule("{d:(decoder|lm_head|cls_pt_layers)[._].*}", None),
    Rule("{d:head[.]([0-9]+|(mlp|last_layer)[0-9]*)[.].*}", None),
    Rule("{d:(fc|fpn[1-4])[.].*}",                None),
)
# All are read by each table; the first rule of ours is written.
TIMM_RULES = (*_LS, *_GAMMA, *_JOINT_QKV, *_APART_QKV, *_QV_BIAS, *_JOINT_MLP, *_APART_MLP, *_REST)
EVA_RULES = (*_GAMMA, *_JOINT_QKV, *_QV_BIAS, *_JOINT_MLP, *_APART_MLP, *_REST)
EVA_GATED_RULES = (*_GAMMA, *_JOINT_QKV, *_QV_BIAS, *_APART_MLP, *_REST)
AIMV2_RULES = (*_LS, *_JOINT_QKV, *_QV_BIAS, *_GAMMA, *_APART_MLP, *_REST)
EVA_APART_RULES = (*_GAMMA, *_APART_QKV, *_QV_BIAS, *_APART_MLP, *_JOINT_MLP, *_REST)


def timm_hybrid_rules(stem: str) -> tuple[Rule, ...]:
    """Returns timm's table with the ResNet's rows; its stem stands elsewhere if it is alone."""
    unit, unit_ = "patch_embed.backbone.stages.{i}.blocks.{j}.", "backbone/stage_{i}/block_{j}/"
    return (
        *TIMM_RULES,
        Rule(stem + "conv.weight",             "backbone/root_conv/kernel",            conv),
        *norm(stem + "norm.",                      "backbone/root_norm/"),
        Rule(unit + "conv{k}.weight",          unit_ + "conv{k}/kernel",               conv),
        *norm(unit + "norm{k}.",                   unit_ + "norm{k}/"),
        Rule(unit + "downsample.conv.weight",  unit_ + "downsample_conv/kernel",       conv),
        *norm(unit + "downsample.norm.",           unit_ + "downsample_norm/"),
    )


def huggingface_rules(
    prefix: str, *, dinov2: bool = False, gated: bool = False, head: str
) -> tuple[Rule, ...]:
    """Returns the table of a transformers class, whose base model stands under `prefix`."""
    layer, attn = prefix + "encoder.layer.{i}.", prefix + "encoder.layer.{i}.attention.attention."
    embeddings = prefix + "embeddings."
    norms = ("norm1", "norm2") if dinov2 else ("layernorm_before", "layernorm_after")
    mlp = ("mlp.fc1", "mlp.fc2") if dinov2 else ("intermediate.dense", "output.dense")
    mlp = ("mlp.weights_in", "mlp.weights_out") if gated else mlp
    qkv = tuple(attn + part for part in ("query.", "key.", "value."))
    return (
        *affine(embeddings + "patch_embeddings.projection.", "patch_embed/proj/", conv),
        Rule(embeddings + "cls_token",                     "cls_token"),
        Rule(embeddings + "distillation_token",            "dist_token"),
        Rule(embeddings + "register_tokens",               "reg_token"),
        Rule(embeddings + "position_embeddings",           "pos_embed"),
        Rule(embeddings + "mask_token",                    None),
        *affine(qkv,                               BLOCK_ + "attn/qkv/", dense, vector),
        *affine(layer + "attention.output.dense.", BLOCK_ + "attn/proj/", dense_out),
        Rule(layer + "layer_scale{k}.lambda1",             BLOCK_ + "ls{k}/gamma"),
        *norm(prefix + "layernorm.",               "norm/"),
        *affine(prefix + "pooler.dense.",          "pre_logits/"),
        *affine(f"{head}.",                        "head/"),
        *affine("distillation_classifier.",        "head_dist/"),
        *norm(f"{layer}{norms[0]}.",               BLOCK_ + "norm1/"),
        *affine(f"{layer}{mlp[0]}.",               BLOCK_ + "mlp/fc1/"),
        *norm(f"{layer}{norms[1]}.",               BLOCK_ + "norm2/"),
        *affine(f"{layer}{mlp[1]}.",               BLOCK_ + "mlp/fc2/"),
    )


def google_rules(*, linen: bool) -> tuple[Rule, ...]:
    """Returns Google's table; both numberings are read, and the one asked for is written."""
    rules = []
    for attention, second, mlp in ((0, 1, 0), (1, 2, 3))[:: 1 if linen else -1]:
        block = "Transformer/encoderblock_{i}/"
        attn = f"{block}MultiHeadDotProductAttention_{attention}/"
        qkv = (attn + "query/", attn + "key/", attn + "value/")
        rules += [
            Rule(block + "LayerNorm_0/{p:scale|bias}",       BLOCK_ + "norm1/{p}"),
            Rule(f"{block}LayerNorm_{second}/{{p:scale|bias}}", BLOCK_ + "norm2/{p}"),
            Rule(tuple(part + "{p:kernel|bias}" for part in qkv), BLOCK_ + "attn/qkv/{p}"),
            Rule(attn + "out/{p:kernel|bias}",               BLOCK_ + "attn/proj/{p}"),
            Rule(f"{block}MlpBlock_{mlp}/Dense_0/{{p:kernel|bias}}", BLOCK_ + "mlp/fc1/{p}"),
            Rule(f"{block}MlpBlock_{mlp}/Dense_1/{{p:kernel|bias}}", BLOCK_ + "mlp/fc2/{p}"),
        ]
    unit, unit_ = "block{i+1}/unit{j+1}/", "backbone/stage_{i}/block_{j}/"
    pool = "MAPHead_0/MultiHeadDotProductAttention_0/"
    places = ["pos_embedding", "Transformer/posembed_input/pos_embedding"]
    return (
        *rules,
        *(Rule(place, "pos_embed") for place in places[:: 1 if linen else -1]),
        Rule("embedding/{p:kernel|bias}",                    "patch_embed/proj/{p}"),
        Rule("cls",                                          "cls_token"),
        Rule("Transformer/encoder_norm/{p:scale|bias}",      "norm/{p}"),
        Rule("MAPHead_0/probe",                              "attn_pool/latent",           row),
        Rule(pool + "query/{p:kernel|bias}",                 "attn_pool/q/{p}"),
        Rule((pool + "key/{p}", pool + "value/{p:kernel|bias}"), "attn_pool/kv/{p}"),
        Rule(pool + "out/{p:kernel|bias}",                   "attn_pool/proj/{p}"),
        Rule("MAPHead_0/LayerNorm_0/{p:scale|bias}",         "attn_pool/norm/{p}"),
        Rule("MAPHead_0/MlpBlock_0/Dense_0/{p:kernel|bias}", "attn_pool/mlp/fc1/{p}"),
        Rule("MAPHead_0/MlpBlock_0/Dense_1/{p:kernel|bias}", "attn_pool/mlp/fc2/{p}"),
        Rule("conv_root/kernel",                             "backbone/root_conv/kernel"),
        Rule("gn_root/{p:scale|bias}",                       "backbone/root_norm/{p}", map_vector),
        Rule(unit + "conv{k}/kernel",                        unit_ + "conv{k}/kernel"),
        Rule(unit + "gn{k}/{p:scale|bias}",                  unit_ + "norm{k}/{p}", map_vector),
        Rule(unit + "conv_proj/kernel",                      unit_ + "downsample_conv/kernel"),
        Rule(unit + "gn_proj/{p:scale|bias}",          unit_ + "downsample_norm/{p}", map_vector),
        Rule("pre_logits/{p:kernel|bias}",                   "pre_logits/{p}"),
        Rule("head/{p:kernel|bias}",                         "head/{p}"),
    )
# fmt: on
