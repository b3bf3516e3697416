"""Registers and memory that attention's kernels take of an NVIDIA GPU, without one.

python benchmarks/gpu_registers.py [--kernel fused] [--window 7 8 12 16] [--gpu h100 a100] [--smoke]

For each kernel, forward and backward: registers of a thread, bytes of them that are spilled to
memory, shared memory of a block; and the temporaries of the program around them. `fused` is ours,
`triton` and `mosaic` are tokamax's (on windows that are cut; --window 0: 197 tokens, no windows).
Heads have 32 channels, of sequences 64. Needs JAX's plugin for CUDA with its libraries, and ptxas
as new: on the path, in NVIDIA's package for it, or by --ptxas.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.extend
import jax.numpy as jnp
from gpu_plan import GPUS, machine

from vitswin_jax.cli.table import format_table
from vitswin_jax.nn.choices import TOKAMAX_KERNELS, Setting
from vitswin_jax.nn.kernels.tokamax_attention import tokamax_attention
from vitswin_jax.nn.kernels.window_attention import window_attention
from vitswin_jax.nn.windows import Cut

MAPS = {7: 56, 8: 64, 12: 96, 16: 64}
"""Window, and the side of the first stage's map."""
BATCH, HEADS, TOKENS = 128, 3, 197
_ENTRY = re.compile(
    r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", re.DOTALL
)
_LAUNCH = re.compile(r"(\w+) grid: .* shared_memory: (\d+) bytes")


def fused(side: int, dtype: str) -> tuple[Callable, list[Any]]:
    """Returns our kernel's call on shifted windows, and its arrays."""
    size = MAPS[side]
    call = functools.partial(
        window_attention,
        cut=Cut((side, side), (side // 2, side // 2)),
        size=(size, size),
        scale=32**-0.5,
        mask_value=-100.0,
    )
    return call, [
        ((BATCH, size, size, 3, HEADS, 32), dtype),
        ((HEADS, side**2, side**2), "float32"),
    ]


def tokamax(side: int, dtype: str, *, kernel: str) -> tuple[Callable, list[Any]]:
    """Returns a call of tokamax's kernel and its arrays: windows with biases, or a sequence."""
    call = functools.partial(tokamax_attention, kernel=kernel)
    if not side:
        call = functools.partial(call, scale=64**-0.5, tokens=TOKENS)
        return call, 3 * [((BATCH, TOKENS + -TOKENS % 8, 12, 64), dtype)]
    windows = (MAPS[side] // side) ** 2
    arrays = 3 * [((BATCH, windows, side**2, HEADS, 32), dtype)]
    bias = ((windows, HEADS, side**2, side**2), "float32")
    return functools.partial(call, scale=32**-0.5), [*arrays, bias]


KERNELS: dict[str, Callable[[int, str], tuple[Callable, list[Any]]]] = {
    "fused": fused,
    "triton": functools.partial(tokamax, kernel="triton"),
    "mosaic": functools.partial(tokamax, kernel="mosaic"),
}


class _Device:
    """The GPU that is not here, as tokamax asks for it."""

    def __init__(self, gpu: str) -> None:
        self.platform, self.device_kind = "gpu", GPUS[gpu]["name"]
        self.core_count, self.compute_capability = GPUS[gpu]["cores"], f"{GPUS[gpu]['major']}.0"


@contextlib.contextmanager
def lowered_for(gpu: str, mesh: Any) -> Iterator[None]:
    """Has programs lowered for a GPU; of float32, tokamax asks for what it takes there: TF32."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.sharding.use_abstract_mesh(mesh))
        if importlib.util.find_spec("tokamax"):
            from tokamax import config

            stack.enter_context(config.cross_compile(True))
            backend, device = jax.extend.backend, _Device(gpu)
            stack.enter_context(mock.patch.object(backend, "get_default_device", lambda: device))
        yield


@contextlib.contextmanager
def written_to(file: Path) -> Iterator[None]:
    """Has what compilers write to the standard output in a file."""
    sys.stdout.flush()
    before = os.dup(1)
    with file.open("w") as out:
        os.dup2(out.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(before, 1)
            os.close(before)


def usage(kernel: str, side: int, dtype: str, gpu: str, ptxas: str) -> tuple[list[Any], int]:
    """Returns (name, registers, bytes spilled, shared memory) of kernels; temporaries in bytes."""
    on, mesh = machine(gpu)
    call, shapes = KERNELS[kernel](side, dtype)
    arrays = [jax.ShapeDtypeStruct(*shape, sharding=on) for shape in shapes]

    def both(*arrays: jax.Array) -> Any:
        out, back = jax.vjp(call, *arrays)
        return out, *back(jnp.ones_like(out))

    precision = "TF32_TF32_F32" if (kernel, dtype) == ("triton", "float32") else None
    with tempfile.TemporaryDirectory() as name, lowered_for(gpu, mesh):
        folder = Path(name)
        dump = {"xla_dump_to": name, "xla_gpu_dump_llvmir": True, "xla_dump_emitter_re": ".*"}
        with jax.default_matmul_precision(precision):
            lowered = jax.jit(both).lower(*arrays)
        with written_to(folder / "log.txt"):
            compiled = lowered.compile(compiler_options=dump)
        text = (folder / "log.txt").read_text()
        for program in folder.glob("*.ptx"):
            arch = re.search(r"\.target (\w+)", program.read_text())
            assert arch is not None  # as every program has one
            command = [ptxas, "-v", f"-arch={arch[1]}", str(program), "-o", str(folder / "out")]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            text += done.stdout + done.stderr
        launches = "".join(file.read_text() for file in folder.glob("*thunk_sequence.txt"))
    shared = dict(_LAUNCH.findall(launches))
    found = [
        (name, int(registers), int(spilled), shared.get(name, "-"))
        for name, spilled, registers in _ENTRY.findall(text)
        if "_kernel" in name or "attention" in name  # the rest are XLA's
    ]
    return sorted(found, reverse=True), compiled.memory_analysis().temp_size_in_bytes


def takes(kernel: str, side: int, dtype: str, gpu: str) -> bool:
    """Returns whether a kernel takes this work, by the package's table of what tokamax's take."""
    setting = Setting("gpu", dtype, side**2 or TOKENS, 32 if side else 64, biased=side > 0)
    setting = setting._replace(capability=float(GPUS[gpu]["major"]))
    return kernel not in TOKAMAX_KERNELS or TOKAMAX_KERNELS[kernel](setting)


def find_ptxas() -> str | None:
    """Returns the path of ptxas, or None."""
    spec = importlib.util.find_spec("nvidia")
    inside = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    files = [file for place in inside for file in sorted(place.glob("*/bin/ptxas"))]
    return str(files[0]) if files else shutil.which("ptxas")


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kernel", nargs="+", default=["fused"], choices=KERNELS)
    add("--window", nargs="+", type=int, default=list(MAPS), choices=[0, *MAPS])
    add("--dtype", nargs="+", default=["bfloat16", "float32"])
    add("--gpu", nargs="+", default=["h100", "a100"], choices=GPUS)
    add("--ptxas", default=find_ptxas(), metavar="FILE")
    add("--smoke", action="store_true", help="one window, one type, one GPU")
    args = parser.parse_args()
    if args.smoke:
        args.window, args.dtype, args.gpu = args.window[:1], args.dtype[:1], args.gpu[:1]
    machine(args.gpu[0])
    if args.ptxas is None:
        sys.exit("benchmarks/gpu_registers.py needs ptxas: pip install nvidia-cuda-nvcc.")
    os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"
    cells = [("", "kernel", "registers", "bytes spilled", "shared memory", "temporaries, MB")]
    for kernel, gpu, dtype, side in itertools.product(
        args.kernel, args.gpu, args.dtype, args.window
    ):
        title = f"{kernel}, {gpu}, {dtype}, " + (f"{side}x{side}" if side else f"{TOKENS} tokens")
        if not takes(kernel, side, dtype, gpu):
            print(f"{title}\tthe kernel does not take it", file=sys.stderr, flush=True)
            continue
        found, temporaries = usage(kernel, side, dtype, gpu, args.ptxas)
        for name, *numbers in found:
            cells.append((title, name, *map(str, numbers), f"{temporaries / 1e6:.1f}"))
        print("\t".join(map(str, cells[-1])), file=sys.stderr, flush=True)
    print(*format_table(cells, align="<<" + ">" * 4), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
