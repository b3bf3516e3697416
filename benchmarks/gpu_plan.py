"""XLA's programs of a model for an NVIDIA GPU, compiled on a machine without one.

python benchmarks/gpu_plan.py [--model NAME ...] [--task train] [--form NAME=VALUE,... ...]

For each form of our programs (`nn.forms.Forms`): kernels started, bytes that they read and write,
bytes of what is not a matrix product, temporaries, and milliseconds if bytes moved at the memory's
rate and products ran at 0.75 of their peak, one after another. Which algorithm a product gets is
left to the GPU. Needs JAX's plugin for CUDA (the extra `gpu`) on any machine with its libraries.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, SingleDeviceSharding

from vitswin_jax.cli.table import format_table
from vitswin_jax.models.registry import create_model
from vitswin_jax.nn.forms import PLATFORMS, compiler_options, traced_for
from vitswin_jax.nn.layers import pair
from vitswin_jax.plan.cost import describe

TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 fpus_per_core: 128
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {opt}
  shared_memory_per_block: 49152
  core_count: {cores} memory_bandwidth: {bandwidth} l2_cache_size: {cache} clock_rate_ghz: {clock}
  device_memory_size: 84942979072 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  cuda_compute_capability {{ major: {major} }} device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability {major}.0" device_address_bits: 64 name: "{name}"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
GPUS: dict[str, dict[str, Any]] = {
    "h100": {
        "name": "NVIDIA H100 80GB HBM3", "major": 9, "cores": 132, "clock": 1.98,
        "bandwidth": 3352320000000, "cache": 52428800, "shared": 233472, "opt": 232448,
    },
    "a100": {
        "name": "NVIDIA A100-SXM4-80GB", "major": 8, "cores": 108, "clock": 1.41,
        "bandwidth": 2039000000000, "cache": 41943040, "shared": 167936, "opt": 166912,
    },
}  # fmt: skip
PEAK = {"h100": 989e12, "a100": 312e12}
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "u64": 8}
_FREE = ["parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all"]


def size_of(shape: str) -> int:
    """Returns the bytes of all arrays in a shape as HLO writes it."""
    total = 0
    for dtype, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape):
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        total += _BYTES.get(dtype, 4) * count
    return total


@dataclasses.dataclass
class Kernel:
    """An instruction of the entry computation that starts a kernel."""

    name: str
    kind: str
    bytes: int


_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:, (.*))?$")


def kernels(program: str) -> list[Kernel]:
    """Returns the kernels of an optimised program."""
    entry = program[program.index("\nENTRY ") :]
    shapes: dict[str, str] = {}
    found = []
    for line in entry.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        name, shape, kind, operands, rest = match.groups()
        shapes[name] = shape
        if kind in _FREE:
            continue
        names = re.findall(r"%([\w.-]+)", operands)
        moved = size_of(shape) + sum(size_of(shapes.get(one, "")) for one in names)
        target = re.search(r'custom_call_target="([^"]+)"', rest or "")
        backend = re.search(r'"kind":"(__\w+)"', rest or "")
        found.append(Kernel(name, (target or backend or [0, kind])[1], moved))
    return found


def is_product(kernel: Kernel) -> bool:
    """Returns whether a kernel is a matrix product."""
    return "gemm" in kernel.kind or "matmul" in kernel.kind or "dot" in kernel.name


def machine(gpu: str) -> tuple[SingleDeviceSharding, jax.sharding.AbstractMesh]:
    """Returns the sharding on a GPU that need not exist here, and the mesh to lower programs in."""
    if importlib.util.find_spec("jax_plugins") is None:
        script = Path(sys.argv[0]).name
        sys.exit(f"benchmarks/{script} needs JAX's plugin for CUDA: pip install jax[cuda13].")
    desc = topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        topology="1x1x1",
        target_config=TARGET.format(**GPUS[gpu]),
    )
    # Pallas asks for the device that it writes a program for.
    device = jax.sharding.AbstractDevice(GPUS[gpu]["name"], num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=device)
    return SingleDeviceSharding(desc.devices[0]), mesh


def compile_step(name: str, task: str, batch: int, gpu: str, fields: Mapping[str, Any]) -> Any:
    """Returns the compiled training step (or inference) of a model in bfloat16."""
    model = create_model(name, dtype=jnp.bfloat16, **fields)
    on, mesh = machine(gpu)
    images = jax.ShapeDtypeStruct((batch, *pair(model.img_size), 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    options = compiler_options("gpu")

    def place(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on), tree)

    if task == "inference":
        apply = functools.partial(model.apply, train=False)
        with jax.sharding.use_abstract_mesh(mesh):
            lowered = jax.jit(apply, compiler_options=options).lower(
                place(variables), place(images)
            )
        return lowered.compile()
    tx = optax.adamw(1e-3)

    def step(params: Any, state: Any, images: Any, labels: Any) -> Any:
        def loss_of(params: Any) -> Any:
            logits = model.apply({"params": params}, images, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = variables["params"]
    arguments = params, jax.eval_shape(tx.init, params), images
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = jax.jit(step, donate_argnums=(0, 1), compiler_options=options).lower(
            *map(place, (*arguments, labels))
        )
    return lowered.compile()


def summary(compiled: Any, gpu: str, flops: float) -> dict[str, float]:
    """Returns the figures that the module's docstring names."""
    found = kernels(compiled.as_text())
    others = [kernel for kernel in found if not is_product(kernel)]
    moved = sum(kernel.bytes for kernel in others)
    bandwidth = GPUS[gpu]["bandwidth"]
    return {
        "kernels": len(found),
        "GB": sum(kernel.bytes for kernel in found) / 1e9,
        "GB besides products": moved / 1e9,
        "temporaries, GB": compiled.memory_analysis().temp_size_in_bytes / 1e9,
        "ms": 1e3 * (moved / bandwidth + flops / (0.75 * PEAK[gpu])),
    }


def main() -> int:
    """Prints a table for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", nargs="+", default=["vit_base_patch16_224", "swin_tiny_patch4_window7_224"])
    add("--task", nargs="+", default=["train"], choices=("train", "inference"))
    add("--batch-size", type=int, default=128)
    add("--gpu", default="h100", choices=GPUS)
    add("--form", nargs="*", default=[], metavar="NAME=VALUE,...")
    add("--fields", default="{}", help="of the model, as JSON")
    add("--kernels", type=int, default=0, metavar="N", help="print the N that move the most")
    add("--smoke", action="store_true", help="a tiny model")
    args = parser.parse_args()
    if args.smoke:
        args.model, args.batch_size = ["vit_tiny_patch16_224"], 2
    for name in args.model:
        for task in args.task:
            adds = describe(create_model(name)).multiply_adds
            flops = 2 * adds * args.batch_size * (3 if task == "train" else 1)
            rows = []
            for text in ["", *args.form]:
                changed = dict(part.split("=") for part in text.split(",") if part)
                chosen = dataclasses.replace(PLATFORMS["gpu"], **changed)
                with traced_for("gpu", chosen):
                    fields = json.loads(args.fields)
                    compiled = compile_step(name, task, args.batch_size, args.gpu, fields)
                rows.append((text or "default", summary(compiled, args.gpu, flops)))
                if args.kernels:
                    _print_kernels(compiled, args.kernels)
            cells = [("", *rows[0][1])]
            cells += [(text, *(f"{x:.2f}" for x in row.values())) for text, row in rows]
            print(f"{name}, {task}, batch {args.batch_size}, {args.gpu}")
            print(*format_table(cells, align="<" + ">" * len(rows[0][1])), sep="\n", flush=True)
    return 0


def _print_kernels(compiled: Any, count: int) -> None:
    groups: dict[tuple[str, int], list[str]] = collections.defaultdict(list)
    for kernel in kernels(compiled.as_text()):
        groups[kernel.kind, kernel.bytes].append(kernel.name)
    most = sorted(groups.items(), key=lambda item: -item[0][1] * len(item[1]))
    for (kind, moved), names in most[:count]:
        total = moved * len(names) / 1e6
        print(f"{len(names):4} x {moved / 1e6:8.1f} MB = {total:8.0f} MB  {kind}  {names[0]}")


if __name__ == "__main__":
    sys.exit(main())
