"""Host memory to load a model of DINOv3-7B's shape, divided over 8 devices.

python benchmarks/load_large.py [--depth 4] [--width 4096] [--param-dtype bfloat16] [--folder DIR]
                                [--smoke]

A stand-in with the keys of transformers' DINOv3-7B, in bfloat16 and in shards, is written, and a
fresh process with 8 virtual devices loads it onto a mesh of fsdp=8. Its peak of resident memory is
compared with the loaded parameters plus four of the file's largest tensors. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TENSORS_MORE = 4
"""At most as many of the file's largest tensors are on their way."""
DEVICES = 8
SHARD = 1 << 30  # bytes of tensors, as transformers divides files by size
HEADS, GATED = 32, 2  # of the 7B, and its MLP's width by the model's


def config_of(width: int, depth: int) -> dict[str, Any]:
    """Returns a config.json as transformers writes it for the 7B, of another width and depth."""
    return {
        "model_type": "dinov3_vit", "architectures": ["DINOv3ViTModel"], "hidden_size": width,
        "intermediate_size": GATED * width, "num_hidden_layers": depth,
        "num_attention_heads": HEADS, "image_size": 224, "patch_size": 16, "num_channels": 3,
        "num_register_tokens": 4, "hidden_act": "silu", "use_gated_mlp": True, "query_bias": False,
        "key_bias": False, "value_bias": False, "proj_bias": True, "mlp_bias": True,
        "layer_norm_eps": 1e-5, "layerscale_value": 1e-5, "rope_theta": 100.0,
    }  # fmt: skip


def shapes_of(width: int, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the names and shapes of transformers' DINOv3 with gated MLPs and no qkv biases."""
    c, f = width, GATED * width
    yield "embeddings.cls_token", (1, 1, c)
    yield "embeddings.mask_token", (1, 1, c)
    yield "embeddings.register_tokens", (1, 4, c)
    yield "embeddings.patch_embeddings.weight", (c, 3, 16, 16)
    yield "embeddings.patch_embeddings.bias", (c,)
    for i in range(depth):
        layer = f"layer.{i}."
        for part in ("norm1", "norm2"):
            yield from ((f"{layer}{part}.{kind}", (c,)) for kind in ("weight", "bias"))
        for k in (1, 2):
            yield f"{layer}layer_scale{k}.lambda1", (c,)
        for part in "qkvo":
            yield f"{layer}attention.{part}_proj.weight", (c, c)
        yield f"{layer}attention.o_proj.bias", (c,)
        for part, shape in (("gate", (f, c)), ("up", (f, c)), ("down", (c, f))):
            yield f"{layer}mlp.{part}_proj.weight", shape
            yield f"{layer}mlp.{part}_proj.bias", shape[:1]
    yield from ((f"norm.{kind}", (c,)) for kind in ("weight", "bias"))


def write_stand_in(folder: Path, width: int, depth: int, *, sparse: bool = False) -> None:
    """Writes shards, their index and config.json; `sparse`: of zeros that take no room on disk."""
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    held = 0
    for name, shape in shapes_of(width, depth):
        size = size_of(shape)
        if held and held + size > SHARD:
            shards.append([])
            held = 0
        shards[-1].append((name, shape))
        held += size
    files = {}
    for i, tensors in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, tensors, sparse=sparse)
        files |= {name: file for name, _ in tensors}
    index = json.dumps({"metadata": {}, "weight_map": files})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    config = json.dumps(config_of(width, depth))
    (folder / "config.json").write_text(config, encoding="utf-8")


def size_of(shape: tuple[int, ...]) -> int:
    """Returns the bytes of a bfloat16 tensor."""
    size = 2
    for side in shape:
        size *= side
    return size


def _write_shard(path: Path, tensors: list[tuple[str, tuple[int, ...]]], *, sparse: bool) -> None:
    """Writes a safetensors file without holding a tensor: numbers are a tile of chance."""
    header, offset = {}, 0
    for name, shape in tensors:
        places = [offset, offset + size_of(shape)]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": places}
        offset = places[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    tile = b"" if sparse else _tile()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        end = file.tell() + offset
        while tile and file.tell() < end:
            file.write(tile[: end - file.tell()])
        file.truncate(end)


def _tile() -> bytes:
    import ml_dtypes
    import numpy as np

    numbers = 0.05 * np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    return numbers.astype(ml_dtypes.bfloat16).tobytes()


def measure(folder: Path, param_dtype: str) -> dict[str, int]:
    """Loads a folder in this process, which should be a fresh one with `DEVICES` devices.

    Returns bytes: the loaded parameters, and the peak of the resident memory above what it was
    after another, tiny model had been loaded.
    """
    import jax

    import vitswin_jax
    from vitswin_jax.train.sharding import create_mesh

    mesh = create_mesh(data=1, fsdp=DEVICES)
    with tempfile.TemporaryDirectory() as tiny:  # imports, and programs of JAX's own
        write_stand_in(Path(tiny), 8 * HEADS, 1)
        vitswin_jax.load_pretrained(tiny, mesh=mesh, param_dtype=param_dtype)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM is now the peak
    _, variables = vitswin_jax.load_pretrained(folder, mesh=mesh, param_dtype=param_dtype)
    leaves = jax.block_until_ready(jax.tree.leaves(variables))
    loaded = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    return {"loaded": loaded, "peak": _memory("VmHWM") - before}


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def report(found: dict[str, int], largest: int) -> str:
    """Returns a line: the peak, what was loaded, and by how many of the largest it is more."""
    more = (found["peak"] - found["loaded"]) / largest
    verdict = "ok" if more <= TENSORS_MORE else "over"
    peak, loaded, tensor = (f"{x / 1e6:,.0f} MB" for x in (found["peak"], found["loaded"], largest))
    return (
        f"peak {peak}, loaded {loaded}, largest tensor {tensor}: {more:.2f} tensors more, at most "
        f"{TENSORS_MORE}: {verdict}"
    )


def main() -> None:
    """Prints the line of `report`; or does the worker's part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--param-dtype", default="bfloat16")
    parser.add_argument("--folder", type=Path, help="where the stand-in is written")
    parser.add_argument("--smoke", action="store_true", help="a narrow one, of one block")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read is not None:
        print(json.dumps(measure(args.read, args.param_dtype)))
        return
    width, depth = (512, 1) if args.smoke else (args.width, args.depth)
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write_stand_in(Path(folder), width, depth)
        command = [sys.executable, __file__, "--read", folder, "--param-dtype", args.param_dtype]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
    largest = max(size_of(shape) for _, shape in shapes_of(width, depth))
    print(report(json.loads(done.stdout), largest))


if __name__ == "__main__":
    main()
