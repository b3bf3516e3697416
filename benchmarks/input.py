"""Decoding, augmentation and the whole input pipeline, next to PyTorch's and TensorFlow's.

python benchmarks/input.py [--peer torch=PYTHON] [--peer tf=PYTHON] [--big-vision AUTOAUGMENT_PY]
                           [--size 500x375] [--format JPEG] [--smoke]

Prints what one image of about 500x375 costs a core, in CPU milliseconds, level by level: the best
of some rounds in which every library has its turn; and images/s of the whole training pipeline by
number of workers, with its CPU time and the peak memory of a worker; "grain" is our pipeline with
Grain's processes (`mp_prefetch`) in place of ours. The ratio is that of the
cheapest peer to ours. A peer is looked for in this interpreter, or in the one that is named:
"torch" needs torch, torchvision and timm, "tf" TensorFlow and, for RandAugment, big_vision's
`pp/archive/autoaugment.py`. A peer that is not there is left out. Linux only.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PEERS = Path(__file__).with_name("input_peers.py")
SUFFIXES = {"JPEG": "jpg", "PNG": "png"}
NEEDS = {"torch": ("torch", "torchvision", "timm", "PIL"), "tf": ("tensorflow",)}
LEVELS = (
    "decode",
    "crop, flip",
    "crop, flip (Pillow's pixels)",
    "rand-m9-mstd0.5-inc1",
    "randaug(2,15)",
    "AutoAugment original",
    "3-Augment, jitter 0.3",
    "jitter 0.4",
    "evaluation",
)


def write_images(
    folder: Path, count: int, *, size: tuple[int, int] = (500, 375), kind: str = "JPEG"
) -> None:
    """Writes images whose spectrum falls like a photograph's; JPEGs of 500x375 are 100 kB."""
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = (int(side * rng.uniform(0.9, 1.1)) for side in size[::-1])
        y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij")
        falloff = 1 / np.maximum(np.hypot(y, x), 1 / width)
        planes = rng.normal(size=(3, height, width))
        planes = np.fft.irfft2(np.fft.rfft2(planes) * falloff, (height, width))
        planes = planes[0] + 0.3 * planes[1:, None].mean(0) + 0.2 * planes
        pixels = 128 + 45 * planes / planes.std()
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0))
        path = folder / "train" / "ab"[number % 2] / f"{number:04}.{SUFFIXES[kind]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = io.BytesIO()
        image.save(data, kind, **({"quality": 90} if kind == "JPEG" else {}))
        path.write_bytes(data.getvalue())


class Peer:
    """A library in a process of its own, which answers one question at a time."""

    def __init__(self, name: str, python: str, *arguments: str) -> None:
        self.name = name
        command = [python, str(PEERS), name, *arguments]
        # No library starts threads that the others do without.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, **question: object) -> dict[str, float]:
        """Returns the answer to a question, empty where there is none."""
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name}: ended at {question}; see it by running {PEERS.name}.")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def compare_levels(peers: list[Peer], rounds: int) -> None:
    """Prints the CPU time of an image by level."""
    print(
        f"{'CPU ms an image, one core':32}" + "".join(f"{peer.name:>10}" for peer in peers), end=""
    )
    print(f"{'ratio':>10}{'images/s':>10}")
    best = {level: [math.inf] * len(peers) for level in LEVELS}
    for level in LEVELS:
        for _ in range(rounds):
            answers = [peer.ask(level=level).get("ms", math.inf) for peer in peers]
            best[level] = [min(pair) for pair in zip(best[level], answers, strict=True)]
        cells = ["-" if math.isinf(ms) else f"{ms:.2f}" for ms in best[level]]
        ratio = min(best[level][1:], default=math.inf) / best[level][0]
        cells += ["-" if math.isinf(ratio) else f"{ratio:.2f}", f"{1e3 / best[level][0]:.0f}"]
        print(f"{level:32}" + "".join(f"{cell:>10}" for cell in cells), flush=True)


def compare_pipelines(peers: list[Peer], workers: list[int], rounds: int, batches: int) -> None:
    """Prints the rate, CPU time and memory of the whole pipeline by number of workers."""
    print(f"\n{'whole pipeline, batches of 64':32}{'images/s':>10}{'CPU ms':>10}", end="")
    print(f"{'MB/worker':>10}{'MB main':>10}")
    for count in workers:
        found = {peer.name: [] for peer in peers}
        for _ in range(rounds):
            for peer in peers:
                found[peer.name].append(peer.ask(workers=count, batches=batches))
        for name, answers in found.items():
            fast = max(answers, key=lambda answer: answer["rate"])
            cells = [f"{fast['rate']:.0f}", f"{min(answer['ms'] for answer in answers):.2f}"]
            memory = max(answer["rss"] for answer in answers)
            cells += ["-" if math.isnan(memory) else f"{memory:.0f}", f"{fast['rss_main']:.0f}"]
            label = f"{name}, {count} worker(s)"
            print(f"{label:32}" + "".join(f"{cell:>10}" for cell in cells), flush=True)


def is_there(name: str, python: str) -> bool:
    """Returns whether an interpreter has what a peer needs."""
    script = (
        f"import importlib.util as u; raise SystemExit(not all(map(u.find_spec, {NEEDS[name]})))"
    )
    return subprocess.run([python, "-c", script], check=False).returncode == 0


def main() -> None:
    """Writes images, starts the peers, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--levels", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--big-vision", metavar="AUTOAUGMENT_PY")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", default="500x375", metavar="WIDTHxHEIGHT", help="about")
    parser.add_argument("--format", choices=SUFFIXES, default="JPEG")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--smoke", action="store_true", help="few images, and no peers")
    options = parser.parse_args()
    if options.smoke:
        options.images, options.rounds, options.batches, options.workers = 2, 1, 1, [0]
    pythons = dict.fromkeys(NEEDS, sys.executable) | dict(
        pair.split("=", 1) for pair in options.peer
    )
    if unknown := set(pythons) - set(NEEDS):
        parser.error(f"--peer: {', '.join(sorted(unknown))}: there are {', '.join(NEEDS)}")
    with tempfile.TemporaryDirectory() as folder:
        width, height = map(int, options.size.split("x"))
        write_images(Path(folder), options.images, size=(width, height), kind=options.format)
        peers = [Peer("ours", sys.executable, folder)]
        for name, python in pythons.items():
            if options.smoke or not is_there(name, python):
                print(f"{name}: {', '.join(NEEDS[name])} not all there for {python}; left out")
                continue
            extra = [options.big_vision] if name == "tf" and options.big_vision else []
            peers.append(Peer(name, python, folder, *extra))
        if options.levels:
            compare_levels(peers, options.rounds)
        # The same batches by Grain's own processes.
        peers.insert(1, Peer("grain", sys.executable, folder))
        compare_pipelines(peers, options.workers, max(1, options.rounds // 2), options.batches)
        for peer in peers:
            peer.close()


if __name__ == "__main__":
    main()
