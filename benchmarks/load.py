"""Time and memory of loading weights, beside the original libraries' readers.

python benchmarks/load.py [--model NAME] [--formats npz,pth,...] [--rounds 5] [--json]
                          [--smoke]

For each format a stand-in file of the model is written; then `load_pretrained` and the format's own
reader (np.load, torch.load, safetensors) load it in turns, each time in a fresh process that has
imported JAX, from a warm cache. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_TIMES = 3.0
"""At most as many times np.load's and torch.load's time."""
MOST_SECONDS_MORE = 3.0
"""At most as many seconds more than safetensors' own reader."""
MOST_MEMORY = 2.0
"""At most as many times the file's size, above what importing JAX takes."""

COLUMNS = "{:18} {:>13} {:>13} {:>13} {:>7}  {}"


def _numpy(path: Path) -> Any:
    import numpy as np

    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _torch(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True, mmap=False)


def _safetensors(path: Path) -> Any:
    import safetensors.numpy

    return safetensors.numpy.load_file(path)


def _ours(path: Path) -> Any:
    import jax

    import vitswin_jax

    return jax.block_until_ready(vitswin_jax.load_pretrained(path)[1])


@dataclasses.dataclass(frozen=True)
class Format:
    """A layout of the file, as `save_pretrained` writes it, and whose reader is the measure."""

    layout: str
    suffix: str
    peer: str


READERS: dict[str, Callable[[Path], Any]] = {
    "load_pretrained": _ours,
    "np.load": _numpy,
    "torch.load": _torch,
    "safetensors": _safetensors,
}
FORMATS = {
    "npz": Format("google", ".npz", "np.load"),
    "pth": Format("timm", ".pth", "torch.load"),
    "safetensors": Format("timm", ".safetensors", "safetensors"),
    "huggingface": Format("huggingface", ".safetensors", "safetensors"),
    "native": Format("native", ".safetensors", "safetensors"),
}


def write_stand_in(path: Path, model_name: str, layout: str) -> None:
    """Writes a file of a model in the layout of an original, with random numbers."""
    import jax
    import numpy as np

    import vitswin_jax

    model = vitswin_jax.create_model(model_name)
    size = model.img_size if isinstance(model.img_size, tuple) else (model.img_size,) * 2
    images = jax.ShapeDtypeStruct((1, *size, model.in_chans), np.float32)
    variables = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0), images)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), variables)
    vitswin_jax.save_pretrained(path, model, variables, format=layout)


def measure(reader: str, path: Path) -> dict[str, float]:
    """Reads a file with one of `READERS`, in this process, which should be a fresh one.

    Returns seconds of wall time and of CPU time, of all threads, and bytes: the peak of the
    resident memory above what it was after `import jax`.
    """
    import jax  # noqa: F401

    before = _memory("VmRSS")
    _warm_imports(reader)
    Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM is the peak
    wall, cpu = time.perf_counter(), time.process_time()
    kept = READERS[reader](path)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    del kept
    return {"wall": wall, "cpu": cpu, "memory": _memory("VmHWM") - before}


def _warm_imports(reader: str) -> None:
    """Imports what a reader needs: importing is not loading."""
    if reader == "load_pretrained":
        from vitswin_jax import load_pretrained  # noqa: F401
    elif reader == "torch.load":
        import torch  # noqa: F401
    else:
        import safetensors.numpy  # noqa: F401


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def run_worker(*arguments: str) -> str:
    """Returns the output of this script in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compare(name: str, model_name: str, rounds: int, folder: Path, warm: int) -> dict[str, Any]:
    """Returns a format's measurements: its file's size, and a list of rounds for each reader.

    The first `warm` rounds are not counted: they fill the page cache.
    """
    form = FORMATS[name]
    path = folder / f"{name}{form.suffix}"
    run_worker("--write", str(path), "--model", model_name, "--layout", form.layout)
    readers = ("load_pretrained", form.peer)
    runs: dict[str, list[dict[str, float]]] = {reader: [] for reader in readers}
    for i in range(rounds + warm):
        for reader in readers if i % 2 else readers[::-1]:
            result = json.loads(run_worker("--read", str(path), "--reader", reader))
            if i >= warm:
                runs[reader].append(result)
    size = path.stat().st_size
    path.unlink()
    return {"format": name, "bytes": size, "peer": form.peer, "runs": runs}


def judge(result: dict[str, Any]) -> dict[str, Any]:
    """Returns a format's figures: minima and medians, ratios, and whether each target is met."""
    ours, theirs = (result["runs"][reader] for reader in ("load_pretrained", result["peer"]))
    wall = {
        statistic.__name__: [statistic([run["wall"] for run in runs]) for runs in (ours, theirs)]
        for statistic in (min, statistics.median)
    }
    memory = max(run["memory"] for run in ours) / result["bytes"]
    fast = {
        name: a - b <= MOST_SECONDS_MORE if result["peer"] == "safetensors" else a <= MOST_TIMES * b
        for name, (a, b) in wall.items()
    }
    return {
        "wall": wall,
        "cpu": [min(run["cpu"] for run in runs) for runs in (ours, theirs)],
        "memory": memory,
        "fast": fast,
        "small": memory <= MOST_MEMORY,
    }


def _has_peer(peer: str) -> bool:
    """Returns whether a reader is installed; says so where it is not."""
    if peer == "torch.load" and importlib.util.find_spec("torch") is None:
        print("torch is not installed, so nothing is compared with torch.load.", file=sys.stderr)
        return False
    return True


def report(results: list[dict[str, Any]]) -> str:
    """Returns a table: a line for each format."""
    lines = [COLUMNS.format("format, GB", "minimum, s", "median, s", "CPU, s", "memory", "target")]
    for result in results:
        figures = judge(result)
        cells = ["{:.2f} / {:.2f}".format(*figures["wall"][name]) for name in ("min", "median")]
        more = (
            f"+{MOST_SECONDS_MORE:g} s" if result["peer"] == "safetensors" else f"{MOST_TIMES:g}x"
        )
        speed = {(True, True): "ok", (False, False): "over"}.get(
            tuple(figures["fast"].values()), "ok by one of minimum and median"
        )
        lines.append(
            COLUMNS.format(
                f"{result['format']}, {result['bytes'] / 1e9:.2f}",
                *cells,
                "{:.2f} / {:.2f}".format(*figures["cpu"]),
                f"{figures['memory']:.2f}x",
                f"{more} of {result['peer']}: {speed}; {MOST_MEMORY:g}x the file: "
                f"{'ok' if figures['small'] else 'over'}",
            )
        )
    return "\n".join(lines)


def main() -> None:
    """Prints the table, or with --json every measurement; or does a worker's part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="one format of the smallest model")
    parser.add_argument(
        "--folder", type=Path, help="where the stand-ins are written, one at a time"
    )
    for worker in ("--write", "--read"):
        parser.add_argument(worker, type=Path, help=argparse.SUPPRESS)
    for option in ("--layout", "--reader"):
        parser.add_argument(option, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write is not None:
        write_stand_in(args.write, args.model, args.layout)
        return
    if args.read is not None:
        print(json.dumps(measure(args.reader, args.read)))
        return
    if args.smoke:
        args.model, args.formats, args.rounds = "vit_tiny_patch16_224", "native", 1
    names = [name for name in args.formats.split(",") if _has_peer(FORMATS[name].peer)]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        results = [
            compare(name, args.model, args.rounds, Path(folder), warm=not args.smoke)
            for name in names
        ]
    if args.json:
        print(json.dumps([result | judge(result) for result in results]))
    else:
        print(report(results))


if __name__ == "__main__":
    main()
