"""Loads every architecture of timm's ViT and Swin files, and transformers' classes, and compares.

    python benchmarks/zoo.py [--module NAME ...] [--match GLOB] [--quick] [--names]

Needs timm, transformers and PyTorch beside this package. Each architecture is built by its library
with random weights, its own widths and one block (Swin: four stages), saved as the library saves
it, and loaded here as a bare file, as a file that is called by the name of its model, as a file
with its name as an argument, and as a folder with its configuration.
A model that is loaded has to give the outputs of its original, to 2e-5 of their standard deviation
or, of a deep one, to twice what the original's own float32 is off its float64, and to
be written back with the same tensors. Tags are the published weights of an architecture.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Programs run once here, so that compiling them without optimisation is the faster way.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import numpy as np

try:
    import timm
    import torch
    import transformers
    from timm.models import _hub, _registry
except ImportError as error:
    sys.exit(f"benchmarks/zoo.py needs timm, transformers and PyTorch: {error}.")

import vitswin_jax
from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.read import read_tensors

TIMM = (
    "vision_transformer", "deit", "vision_transformer_hybrid", "swin_transformer",
    "swin_transformer_v2", "beit", "eva", "vision_transformer_relpos", "swin_transformer_v2_cr",
)  # fmt: skip
TOLERANCE = 2e-5  # of the standard deviation of the outputs
WAYS = ("file", "path", "named", "folder")
UNREAD = ("relative_position_index", "relative_coords_table", "attn_mask", "mask_token")
SIZES: dict[str, Any] = {
    "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 6,
    "image_size": 64, "patch_size": 16,
}  # fmt: skip
SWIN: dict[str, Any] = {
    "embed_dim": 24, "depths": [1, 2, 1], "num_heads": [2, 4, 8], "image_size": 64,
    "patch_size": 4, "window_size": 4,
}  # fmt: skip
RELATIVE = {"use_relative_position_bias": True}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {  # class -> its configuration, fields
    "ViTModel": ("ViTConfig", {}),
    "ViTForImageClassification": ("ViTConfig", {}),
    "ViTMSNModel": ("ViTMSNConfig", {}),
    "IJepaModel": ("IJepaConfig", {}),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", {}),
    "DeiTForImageClassification": ("DeiTConfig", {}),
    "Dinov2Model": ("Dinov2Config", {}),
    "Dinov2ForImageClassification": ("Dinov2Config", {"use_swiglu_ffn": True}),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", {}),
    "DINOv3ViTModel": ("DINOv3ViTConfig", {"num_register_tokens": 4}),
    "BeitModel": ("BeitConfig", RELATIVE),
    "BeitForImageClassification": ("BeitConfig", RELATIVE),
    "Data2VecVisionForImageClassification": ("Data2VecVisionConfig", RELATIVE),
    "SiglipVisionModel": ("SiglipVisionConfig", {}),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", {"projection_dim": 32}),
    "Aimv2VisionModel": ("Aimv2VisionConfig", {}),
    "SwinModel": ("SwinConfig", SWIN),
    "SwinForImageClassification": ("SwinConfig", SWIN),
    "Swinv2ForImageClassification": ("Swinv2Config", SWIN),
}


@dataclass
class Result:
    """Outcome of an architecture."""

    name: str
    tags: int
    lines: dict[str, str] = field(default_factory=dict)
    """Way of loading -> why it is refused, or how far the outputs are off."""
    read: set[str] = field(default_factory=set)
    written: bool = False

    def count(self, of: str) -> int:
        """Returns 1 for what the column `of` counts, else 0."""
        if of == "wrong":
            return any(line.startswith("WRONG") for line in self.lines.values())
        if of == "refused":
            return not self.count("wrong") and any(way in self.lines for way in WAYS[1:])
        return self.written if of == "written" else of in self.read


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Gives a model numbers of which every one moves the outputs."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 100
        scale = name.endswith("weight") or "gamma" in name or name.endswith("lambda1")
        shift = 1.0 if tensor.ndim == 1 and scale and "bias" not in name else 0.0
        tensor.data = noise * min(0.5, max(fan_in, 4) ** -0.5) + shift
    return model.eval()


def outputs(model: torch.nn.Module, images: np.ndarray, *, pool: str | None = None) -> np.ndarray:
    """Returns an original's logits or its pooler's features, or those of its tokens by `pool`."""
    with torch.no_grad():
        out = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    if isinstance(out, torch.Tensor):
        return out.numpy()
    keys = ("logits", "image_embeds", *(["pooler_output"] if pool is None else []))
    for key in keys:
        if out.get(key) is not None:
            return out[key].numpy()
    tokens = out.last_hidden_state
    mean = pool == "avg" or "IJepa" in type(model).__name__
    return (tokens.mean(1) if mean else tokens[:, 0]).numpy()


def load(way: str, folder: Path, name: str | None) -> tuple[Any, Any] | str:
    """Returns a model and its variables, or the line that refuses it."""
    files = {"folder": folder, "path": folder / "bare" / f"{name}.safetensors"}
    path = files.get(way, folder / "bare.safetensors")
    try:
        return vitswin_jax.load_pretrained(path, name if way == "named" else None)
    except UserError as error:
        return str(error).replace(str(folder), "").lstrip("/: ")


def beyond_rounding(model: torch.nn.Module, images: np.ndarray, got: np.ndarray) -> float:
    """Returns how far outputs are from the original's, 0 within twice its own rounding."""
    want = outputs(model.float(), images)
    if got.shape != want.shape:
        return float("inf")
    error = float(np.abs(got - want).max() / want.std())
    if error <= TOLERANCE:
        return error
    exact = outputs(model.double(), images.astype(np.float64))
    ours, theirs = (float(np.abs(of - exact).max()) for of in (got, want))
    return 0.0 if ours <= 2 * theirs else error


def compare(
    result: Result,
    folder: Path,
    name: str | None,
    images: np.ndarray,
    original: torch.nn.Module | None,
) -> None:
    """Loads a folder in each way, and notes what it gives; equal models are run once.

    Without `original` nothing is run: a model of the same parts was.
    """
    seen: list[tuple[Any, float]] = []
    for way in WAYS:
        if way != "folder" and name is None:
            continue
        found = load(way, folder, name)
        if isinstance(found, str):
            result.lines[way] = found
            continue
        model, variables = found
        error = 0.0 if original is None else next((e for other, e in seen if other == model), None)
        if error is None:
            try:
                with jax.default_matmul_precision("highest"):
                    got = np.asarray(jax.jit(model.apply)(variables, images))
            except UserError as refused:  # of a file that does not show the size of its images
                result.lines[way] = str(refused)
                continue
            error = beyond_rounding(original, images, got)
            seen.append((model, error))
        if error > TOLERANCE:
            result.lines[way] = f"WRONG: off by {error:.1e} of the standard deviation"
            continue
        result.read.add(way)
        if way == "folder" and name is not None:
            result.written = is_written_back(result, folder, model, variables)
        elif way == "folder":
            result.written = is_read_again(result, folder, found, images, outputs(original, images))


def write(result: Result, folder: Path, model: Any, variables: Any, format: str) -> bool:
    """Returns whether a model is written to `folder`/again."""
    try:
        vitswin_jax.save_pretrained(folder / "again", model, variables, format=format)
    except UserError as error:
        result.lines["written"] = str(error).replace(str(folder), "").lstrip("/: ")
        return False
    return True


def is_read_again(
    result: Result, folder: Path, loaded: tuple[Any, Any], images: np.ndarray, want: Any
) -> bool:
    """Returns whether transformers reads what is written, and gives the same outputs."""
    model, variables = loaded
    if not write(result, folder, model, variables, "huggingface"):
        return False
    config = json.loads((folder / "again" / "config.json").read_text(encoding="utf-8"))
    kind = getattr(transformers, config["architectures"][0])
    own = {"attn_pool", "pre_logits", "fc_norm"} & variables["params"].keys()
    plain = not own and hasattr(model, "global_pool")  # a pooler over there is not in the file
    pool = model.global_pool if plain else None
    got = outputs(kind.from_pretrained(folder / "again").eval(), images, pool=pool)
    error = float(np.abs(got - want).max() / want.std())
    if error > TOLERANCE:
        result.lines["written"] = f"WRONG: {kind.__name__} is off by {error:.1e}"
    return error <= TOLERANCE


def is_written_back(result: Result, folder: Path, model: Any, variables: Any) -> bool:
    """Returns whether a model is written with the tensors that its original's file has."""
    if not write(result, folder, model, variables, "timm"):
        return False
    theirs, ours = (
        {n: t.read() for n, t in read_tensors(at / "model.safetensors").tensors.items()}
        for at in (folder, folder / "again")
    )
    names = {name for name in theirs if not name.endswith(UNREAD)}
    equal = names <= ours.keys() and all(np.array_equal(theirs[n], ours[n]) for n in names)
    extra = {name for name in ours if name not in theirs and not name.endswith(UNREAD)}
    if not equal or extra:
        differ = [n for n in names if n not in ours or not np.array_equal(theirs[n], ours[n])]
        result.lines["written"] = f"differs: {', '.join(sorted([*differ, *extra])[:3])}"
    return equal and not extra


def images_of(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Returns two images of noise."""
    return np.random.default_rng(0).standard_normal((2, height, width, channels), np.float32)


def refusal(name: str) -> str | None:
    """Returns the line that refuses a name, None for a name that is known."""
    try:
        vitswin_jax.create_model(name)
    except UserError as error:
        return str(error)
    return None


PARTS: set[str] = set()
"""Parts of the models that were run."""


def parts_of(model: torch.nn.Module) -> str:
    """Returns the structure of a model of timm's, without the size of its images."""
    attentions = (m for n, m in model.named_modules() if n.endswith("blocks.0.attn"))
    first = next(attentions, model)  # parallel blocks have several
    options = {k: v for k, v in vars(first).items() if isinstance(v, int | float | bool)}
    pools = {k: getattr(model, k, None) for k in ("global_pool", "no_embed_class", "num_classes")}
    rope = getattr(model, "rope", None)
    turned = (
        {k: v for k, v in vars(rope).items() if isinstance(v, str | float | bool)} if rope else 0
    )
    return f"{model} {options} {pools} {turned} {getattr(model, 'pool_include_prefix', 0)}"


def try_timm(name: str, folder: Path, *, quick: bool) -> Result:
    """Tries an architecture of timm's; `quick` runs one of each that differ in image size only."""
    published = timm.list_pretrained(f"{name}.*")
    result = Result(name, len(published))
    args: dict[str, Any] = {"depths": (1, 1, 2, 1)} if "swin" in name else {"depth": 1}
    try:
        with torch.device("meta"):
            classes = timm.create_model(name, **args).num_classes
    except AssertionError as error:  # its blocks differ from each other
        result.lines["named"] = refusal(name) or f"timm: {error}"
        return result
    args["num_classes"] = 10 if classes else 0
    model = fill(timm.create_model(name, **args))
    size = model.patch_embed.img_size or timm.get_pretrained_cfg(name).input_size[1:]
    images = images_of(*size)
    _hub.save_for_hf(model, str(folder), model_args=args, safe_serialization=True)
    (folder / "bare").mkdir()
    (folder / "model.safetensors").rename(folder / "bare" / "bare.safetensors")
    os.link(folder / "bare" / "bare.safetensors", folder / "model.safetensors")
    os.link(folder / "model.safetensors", folder / "bare" / f"{name}.safetensors")
    (folder / "bare" / "bare.safetensors").rename(folder / "bare.safetensors")
    known = parts_of(model) in PARTS and quick
    PARTS.add(parts_of(model))
    compare(result, folder, name, images, None if known else model)
    return result


def try_transformers(name: str, folder: Path) -> Result:
    """Tries a class of transformers'."""
    kind, fields = TRANSFORMERS[name]
    sizes = {} if fields is SWIN else SIZES
    config = getattr(transformers, kind)(**{**sizes, **fields})
    model = fill(getattr(transformers, name)(config))
    model.save_pretrained(folder)
    images = images_of(64, 64)
    result = Result(name, 1)
    compare(result, folder, None, images, model)
    return result


def table(results: dict[str, list[Result]]) -> list[str]:
    """Returns the table of docs/weights.md."""
    columns = ("file", "path", "named", "folder", "written", "refused", "wrong")
    lines = [
        "| file of timm | tags | bare file | called so | with a name | hub folder | written back "
        "| refused | wrong |",
        "|" + " --- |" * 9,
    ]
    total: Counter[str] = Counter()
    for family, rows in results.items():
        counts = Counter({of: sum(r.tags * r.count(of) for r in rows) for of in columns})
        counts["tags"] = sum(row.tags for row in rows)
        total += counts
        shown = (counts[of] for of in ("tags", *columns))
        lines.append(f"| {family} | {' | '.join(map(str, shown))} |")
    shares = [f"{total[of]} ({100 * total[of] / max(total['tags'], 1):.0f} %)" for of in columns]
    return [*lines, f"| all | {total['tags']} | {' | '.join(shares)} |"]


def names_table() -> list[str]:
    """Returns the table of docs/weights.md: tags of architectures whose names are known here."""
    lines = ["| file of timm | weights | supported | not supported |", "| --- | --- | --- | --- |"]
    total = Counter[str]()
    for module in TIMM:
        names = _registry._module_to_models[module] - _registry._deprecated_models.keys()
        tags = {name: len(timm.list_pretrained(f"{name}.*")) for name in sorted(names)}
        others = [name for name, count in tags.items() if count and refusal(name)]
        known = sum(tags.values()) - sum(tags[name] for name in others)
        total += Counter(tags=sum(tags.values()), known=known)
        shown = ", ".join(f"`{name}`" for name in others)
        lines.append(f"| `{module}` | {sum(tags.values())} | {known} | {shown} |")
    share = round(100 * total["known"] / total["tags"])
    return [*lines, f"| all | {total['tags']} | {total['known']} ({share} %) | |"]


def main() -> None:
    """Tries all, prints a line for what is not as its original, and the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--module", nargs="+", default=[*TIMM, "transformers"])
    parser.add_argument("--match", default="*", help="names of architectures, as fnmatch has them")
    parser.add_argument("--quick", action="store_true", help="run one of several image sizes")
    parser.add_argument("--names", action="store_true", help="count names, and build nothing")
    args = parser.parse_args()
    if args.names:
        print("\n".join(names_table()))
        return
    warnings.filterwarnings("ignore")
    results: dict[str, list[Result]] = {}
    for module in args.module:
        timms = module != "transformers"
        names = _registry._module_to_models[module] if timms else TRANSFORMERS
        for name in sorted(set(names) - _registry._deprecated_models.keys()):
            if not fnmatch.fnmatch(name, args.match):
                continue
            with tempfile.TemporaryDirectory() as folder:
                if timms:
                    result = try_timm(name, Path(folder), quick=args.quick)
                else:
                    result = try_transformers(name, Path(folder))
            results.setdefault(module, []).append(result)
            for way, line in result.lines.items():
                print(f"{name} ({result.tags} tags), {way}: {line}", flush=True)
            jax.clear_caches()
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
