"""Writes goldens/{originals.json,originals.npz,schedules.npz,big_vision.npz}: the originals, run.

PYTHONPATH=tests python tests/goldens/write_train.py --swin DIR --mae DIR --big-vision DIR

Needs torch and timm, and checkouts of microsoft/Swin-Transformer, facebookresearch/mae and
google-research/big_vision. Trajectories are of float64 models, on torch's own optimizers.
"""

import argparse
import ast
import functools
import importlib.util
import json
import re
import sys
import types
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity
import torch

GOLDENS = Path(__file__).parent / "train"
SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4]}
SWIN |= {"window_size": 4, "num_classes": 10, "drop_path_rate": 0.0}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
VIT |= {"num_classes": 10}
STEPS, TOTAL, WARMUP, LAYER_DECAY = 6, 10, 3, 0.75
CASES = {
    # The optimizer's keys as ours are called; the originals' are made from them.
    "swinv2_adamw": {"name": "adamw", "peak_lr": 1e-4, "weight_decay": 2.0, "max_grad_norm": 5.0},
    "swin_sgd": {
        "name": "sgd",
        "peak_lr": 0.05,
        "weight_decay": 1e-3,
        "max_grad_norm": 1.0,
        "momentum": 0.9,
        "nesterov": True,
        "accum_steps": 4,
    },
    "swin_layer_decay": {
        "name": "adamw",
        "peak_lr": 1e-3,
        "weight_decay": 1.0,
        "max_grad_norm": 5.0,
        "layer_decay": LAYER_DECAY,
    },
}
WARM = {"schedule": "cosine", "warmup_steps": WARMUP, "warmup_lr": 5e-7, "end_lr": 5e-6}
WARM |= {"total_steps": TOTAL}


def without_t_mul(make):
    """A scheduler that takes `t_mul`, which is 1, as timm called `cycle_mul` once."""

    def scheduler(*args, t_mul, **keys):
        assert t_mul == 1
        return make(*args, **keys)

    return scheduler


def load_module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_timm():
    """Imports timm beside a torchvision that has no operators of its own."""
    register = torch.library.register_fake

    def register_fake(op, *args, **kwargs):
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return register(op, *args, **kwargs)

    torch.library.register_fake = register_fake
    warnings.simplefilter("ignore")
    return __import__("timm")


def namespace(**fields):
    return types.SimpleNamespace(**fields)


def train_config(optim, depths):
    """Microsoft's config, as far as its optimizer and its scheduler read it."""
    optimizer = namespace(NAME=optim["name"], EPS=1e-8, BETAS=(0.9, 0.999), MOMENTUM=0.9)
    scheduler = namespace(
        NAME="cosine", WARMUP_PREFIX=True, DECAY_EPOCHS=1, MULTISTEPS=[], DECAY_RATE=0.1
    )
    return namespace(
        TRAIN=namespace(
            OPTIMIZER=optimizer,
            LR_SCHEDULER=scheduler,
            BASE_LR=optim["peak_lr"],
            WEIGHT_DECAY=optim["weight_decay"],
            LAYER_DECAY=LAYER_DECAY,
            EPOCHS=TOTAL,
            WARMUP_EPOCHS=WARMUP,
            WARMUP_LR=WARM["warmup_lr"],
            MIN_LR=WARM["end_lr"],
        ),
        MODEL=namespace(TYPE="swin", SWIN=namespace(DEPTHS=depths)),
    )


def entries_of(model):
    buffers = dict(model.named_buffers())
    return {
        key: {"shape": list(value.shape), "dtype": "float32"}
        | ({"kind": "buffer"} if key in buffers else {})
        for key, value in model.state_dict().items()
    }


def load_stand_in(model, entries):
    state = parity.make_state(entries)
    params = {key: torch.from_numpy(state[key]) for key in state if "kind" not in entries[key]}
    model.load_state_dict(params, strict=False)
    return model.double()


def groups_of(optimizer, model):
    """What the original's groups say of each parameter: [its share of the rate, does it decay]."""
    names = {id(param): name for name, param in model.named_parameters()}
    return {
        names[id(param)]: [group.get("lr_scale", 1.0), float(group["weight_decay"] > 0)]
        for group in optimizer
        for param in group["params"]
    }


def batch_of(step):
    images = parity.make_images(7100 + step, 8, 32, 32)
    return images, (np.arange(8) * 3 + step) % 10


def swin_trajectory(case, optim, microsoft):
    """Returns a case and its arrays."""
    kind = "swin_transformer_v2" if case.startswith("swinv2") else "swin_transformer"
    source = load_module(kind, microsoft / "models" / f"{kind}.py")
    make = source.SwinTransformerV2 if kind.endswith("v2") else source.SwinTransformer
    entries = entries_of(make(**SWIN))
    model = load_stand_in(make(**SWIN), entries)
    config = train_config(optim, SWIN["depths"])
    parts = optim.get("accum_steps", 1)
    optimizers = load_module("optimizer", microsoft / "optimizer.py")
    optimizer = optimizers.build_optimizer(config, model, simmim="layer_decay" in optim)
    groups = groups_of(optimizer.param_groups, model)
    scheduler = load_module("lr_scheduler", microsoft / "lr_scheduler.py")
    scheduler.CosineLRScheduler = without_t_mul(scheduler.CosineLRScheduler)
    # On an optimizer of its own: theirs would let every layer warm up from and end at one rate,
    # where BEiT and MAE multiply the schedule.
    alone = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=optim["peak_lr"])
    schedule = scheduler.build_scheduler(config, alone, 1)
    rows = {"loss": [], "grad_norm": [], "logits": []}
    for step in range(STEPS):
        schedule.step_update(step)
        for group in optimizer.param_groups:
            group["lr"] = alone.param_groups[0]["lr"] * group.get("lr_scale", 1.0)
        images, labels = batch_of(step)
        x = torch.from_numpy(images).double().permute(0, 3, 1, 2)
        optimizer.zero_grad()
        logits, losses = [], []
        for part in np.split(np.arange(8), parts):
            logits.append(model(x[part]))
            target = torch.from_numpy(labels[part])
            losses.append(torch.nn.functional.cross_entropy(logits[-1], target) / parts)
            losses[-1].backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim["max_grad_norm"])
        optimizer.step()
        rows["loss"].append(sum(loss.item() for loss in losses))
        rows["grad_norm"].append(norm.item())
        rows["logits"].append(torch.cat(logits).detach().numpy())
    arrays = {key: np.asarray(value, np.float32) for key, value in rows.items()}
    fields = {"entries": entries, "format": "pth", "wrapper": "model", "checkpoint": case}
    return fields | {"optim": optim | WARM, "groups": groups}, arrays


def vit_groups(timm, mae):
    """MAE's groups of timm's ViT."""
    model = timm.models.VisionTransformer(**VIT)
    lr_decay = load_module("lr_decay", mae / "util" / "lr_decay.py")
    groups = lr_decay.param_groups_lrd(
        model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=LAYER_DECAY
    )
    fields = {"format": "safetensors", "wrapper": None, "checkpoint": "vit_groups"}
    optim = {"layer_decay": LAYER_DECAY}
    return fields | {
        "entries": entries_of(model),
        "groups": groups_of(groups, model),
        "optim": optim,
    }


# Schedules: name -> (our keys, the original's rates at every step).


def timm_rates(make, steps, *, by_epoch=None):
    """The rates that a scheduler of timm's sets, asked at each step or at each epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler, rates = make(optimizer), []
    for step in range(steps):
        if by_epoch:
            scheduler.step(step // by_epoch)
        else:
            scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def torch_schedules(microsoft):
    from timm.scheduler.cosine_lr import CosineLRScheduler

    theirs = load_module("lr_scheduler", microsoft / "lr_scheduler.py")
    peak = {"peak_lr": 1e-3, "total_steps": 40}
    warm = {"warmup_steps": 8, "warmup_lr": 1e-5}
    cosine = functools.partial(CosineLRScheduler, lr_min=1e-6, warmup_lr_init=1e-5, cycle_limit=1)
    yield (
        "timm_cosine_prefix",
        peak | warm | {"schedule": "cosine", "end_lr": 1e-6},
        timm_rates(
            lambda o: cosine(o, t_initial=32, warmup_t=8, warmup_prefix=True, t_in_epochs=False), 40
        ),
    )
    yield (
        "timm_cosine_no_prefix",
        peak | warm | {"schedule": "cosine", "end_lr": 1e-6, "warmup_prefix": False},
        timm_rates(lambda o: cosine(o, t_initial=40, warmup_t=8, t_in_epochs=False), 40),
    )
    yield (
        "timm_cosine_by_epoch",
        peak
        | warm
        | {"schedule": "cosine", "end_lr": 1e-6, "warmup_prefix": False, "schedule_unit": "epoch"}
        | {"steps_per_epoch": 4.0},
        timm_rates(lambda o: cosine(o, t_initial=10, warmup_t=2), 40, by_epoch=4),
    )
    yield (
        "microsoft_linear",
        peak | warm | {"schedule": "linear", "end_lr": 1e-5},
        timm_rates(
            lambda o: theirs.LinearLRScheduler(
                o, 40, lr_min_rate=0.01, warmup_t=8, warmup_lr_init=1e-5, t_in_epochs=False
            ),
            40,
        ),
    )
    yield (
        "microsoft_multistep",
        peak | warm | {"schedule": "multistep", "milestone_steps": [20, 33], "gamma": 0.2},
        timm_rates(
            lambda o: theirs.MultiStepLRScheduler(
                o, [20, 33], gamma=0.2, warmup_t=8, warmup_lr_init=1e-5, t_in_epochs=False
            ),
            40,
        ),
    )


def big_vision(checkout):
    """Their optimizers and schedules, without what their modules import besides."""
    wanted = {"_traverse_with_names", "tree_flatten_with_names", "check_and_compile_patterns"}
    wanted |= {"make_mask_trees", "tree_map_with_names", "steps", "create_learning_rate_schedule"}
    tree = ast.parse((checkout / "big_vision" / "utils.py").read_text())
    tree.body = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted
    ]
    package, utils = types.ModuleType("big_vision"), types.ModuleType("big_vision.utils")
    utils.__dict__.update(jax=jax, jnp=jnp, np=np, re=re)
    utils.__dict__.update(flax=__import__("flax"), logging=__import__("logging"))
    utils.__dict__.update(dataclasses=__import__("dataclasses"))
    utils.__dict__.update(collections=__import__("collections"), Mapping=dict)
    exec(compile(tree, "utils", "exec"), utils.__dict__)
    package.utils = utils
    sys.modules |= {"big_vision": package, "big_vision.utils": utils}
    return utils, load_module("big_vision.optax", checkout / "big_vision" / "optax.py")


def jax_schedules(utils):
    counts = {"peak_lr": 8e-4, "total_steps": 40, "warmup_steps": 6}
    for name, ours, theirs in (
        ("cosine", {}, {}),
        ("linear", {"end_lr": 1e-5}, {"linear_end": 1e-5}),
        ("rsqrt", {"timescale_steps": 9, "cooldown_steps": 12}, {}),
        ("cosine", {"cooldown_steps": 10}, {}),
    ):
        more = {"timescale": 9} if name == "rsqrt" else theirs
        more |= {"cooldown_steps": ours["cooldown_steps"]} if "cooldown_steps" in ours else {}
        rate = utils.create_learning_rate_schedule(
            40, base=8e-4, decay_type=name, warmup_steps=6, **more
        )
        label = f"big_vision_{name}" + ("_cooldown" if ours.get("cooldown_steps") == 10 else "")
        yield label, counts | {"schedule": name} | ours, [float(rate(t)) for t in range(40)]


BIG_VISION_SHAPES = {
    "pos_embed": (1, 4, 36),
    "block_0/attn/qkv/kernel": (34, 3, 2, 32),
    "block_0/mlp/fc1/kernel": (36, 40),
    "block_0/mlp/fc1/bias": (40,),
    "head/kernel": (36, 5),
    "head/bias": (5,),
}


def big_vision_updates(theirs):
    """Eight steps of theirs, with multipliers and something frozen: the parameters after them."""
    from flax.traverse_util import flatten_dict, unflatten_dict
    from ml_collections import ConfigDict

    def tree(prefix):
        flat = {key: parity.make_array(prefix + key, s) for key, s in BIG_VISION_SHAPES.items()}
        return unflatten_dict(flat, sep="/")

    schedule = {"decay_type": "rsqrt", "timescale": 3, "warmup_steps": 2, "cooldown_steps": 3}
    for name, rule, keys in (
        ("adafactor", "big_vision.scale_by_adafactor", {}),
        ("adam", "scale_by_adam", {"mu_dtype": "bfloat16", "b2": 0.95}),
    ):
        config = ConfigDict(
            {
                "optax_name": rule,
                "optax": keys,
                "lr": 8e-3,
                "wd": 1e-3,
                "wd_mults": ((".*head/kernel", 100.0), (".*/kernel", 1.0)),
                "lr_mults": (("head/.*", 0.5),),
                "grad_clip_norm": 1.0,
                "schedule": [("pos_embed", None), (".*", schedule)],
            }
        )
        params = tree("param/")
        tx, _ = theirs.make(config, params, sched_kw={"total_steps": 8})
        state, update = tx.init(params), jax.jit(tx.update)  # as they run it: bfloat16 rounds less
        for step in range(8):
            updates, state = update(tree(f"grad {step}/"), state, params)
            params = jax.tree.map(jnp.add, params, updates)
        for key, value in flatten_dict(params, sep="/").items():
            yield f"{name}/{key}", np.asarray(value)


def main():
    parser = argparse.ArgumentParser()
    for flag in ("--swin", "--mae", "--big-vision"):
        parser.add_argument(flag, type=Path, required=True)
    args = parser.parse_args()
    timm = import_timm()
    cases, arrays = {}, {}
    for name, optim in CASES.items():
        cases[name], rows = swin_trajectory(name, optim, args.swin)
        arrays |= {f"{name}/{key}": value for key, value in rows.items()}
    cases["vit_groups"] = vit_groups(timm, args.mae)
    (GOLDENS / "originals.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")
    np.savez_compressed(GOLDENS / "originals.npz", **arrays)

    utils, optimizers = big_vision(args.big_vision)
    schedules = [*torch_schedules(args.swin), *jax_schedules(utils)]
    np.savez_compressed(
        GOLDENS / "schedules.npz",
        **{f"{name}/rates": np.asarray(rates) for name, _, rates in schedules},
        **{f"{name}/keys": np.asarray(json.dumps(keys)) for name, keys, _ in schedules},
    )
    np.savez_compressed(GOLDENS / "big_vision.npz", **dict(big_vision_updates(optimizers)))


if __name__ == "__main__":
    main()
