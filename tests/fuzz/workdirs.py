"""The workdir of a small run, any file of which is damaged, and what a resume makes of it."""

from __future__ import annotations

import functools
import io
import shutil
import tarfile

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vitswin_jax import create_model
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.report.runs import read_config, read_metrics
from vitswin_jax.train.keep.checkpoint import Checkpoints
from vitswin_jax.train.keep.claim import claimed
from vitswin_jax.train.keep.loggers import Jsonl, TensorBoard
from vitswin_jax.train.keep.same_data import write_accepted
from vitswin_jax.train.run.start import Origin, Start, read_start, save_start
from vitswin_jax.train.sharding import create_mesh
from vitswin_jax.train.state import TrainState

from .mutate import BYTES, json_value

CONFIG = {"seed": 0, "data": {"dataset": "./flowers"}, "optim": {"b": (0.9, 0.99), "lr": 0.1}}
SPLIT = {"images": 9, "per_class": [4, 5], "digests": {"names": "aa", "labels": "bb"}}
DATA = {"classes": ["rose", "tulip"], "train": SPLIT, "test": SPLIT}
OTHERS = (
    b"",
    b"[]",
    b"{}",
    b"null",
    b"3",
    b"\0" * 64,
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"step": "x"}',
)
"""Contents that some file of someone else's may have."""


@functools.cache
def state(step):
    """A small state of numbers that only `step` gives."""
    rng = np.random.default_rng(step)
    params = {"head": {"kernel": rng.normal(size=(8, 3)).astype(np.float32)}}
    moments = {"head": {"kernel": np.ones((8, 3), np.float32)}}
    place = NamedSharding(create_mesh(data=1), PartitionSpec())
    whole = TrainState(np.int32(step), params, (moments,), None)
    return jax.tree.map(lambda leaf: jax.device_put(leaf, place), whole)


def like(of):
    """The layout of a state."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), of
    )


def write(folder, weights):
    """A run's workdir after two checkpoints, as an archive; `weights` is its model.safetensors."""
    workdir = folder / "made"
    with claimed(workdir, CONFIG, DATA):
        preprocess = {"img_size": [16, 16], "mean": [0.5] * 3, "std": [0.5] * 3}
        origin = Origin("a.safetensors", "0" * 64, preprocess, "vit", adapted=("a line",))
        save_start(workdir, Start(create_model("vit"), Preprocess(img_size=(16, 16)), origin))
        logs = [make(workdir, start_step=0) for make in (Jsonl, TensorBoard)]
        with Checkpoints(workdir / "checkpoints", newest=9, data=DATA) as checkpoints:
            for step in (1, 2):
                for log in logs:
                    log.log(step, {"train/loss": 1.0 / step, "test/accuracy": 0.5})
                checkpoints.save(state(step), next_batch=step, metrics={"test/accuracy": 0.5})
        for log in logs:
            log.close()
        write_accepted(workdir, 2, DATA)
        (workdir / "model.safetensors").write_bytes(weights.read_bytes())
        (workdir / "report.html").write_text("<html></html>")
    path = folder / "run.tar"
    path.write_bytes(packed(workdir))
    shutil.rmtree(workdir)
    return path, path


def packed(workdir):
    """Returns a folder as the bytes of an archive, which are the same for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(workdir.rglob("*")):
            archive.add(path, path.relative_to(workdir), recursive=False)
    return buffer.getvalue()


def damage(data, rng):
    """Damages a file of a workdir: its bytes, its JSON, its place, or what kind of thing it is."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(m, archive.extractfile(m).read() if m.isfile() else b"") for m in archive]
    # Arrays are many files, and Orbax's; the others are read first.
    few = [n for n, (m, _) in enumerate(members) if "ocdbt" not in m.name and "/d/" not in m.name]
    chosen = rng.choice(few if rng.random() < 0.7 else range(len(members)))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for n, (member, content) in enumerate(members):
            for info, now in damaged(member, content, rng) if n == chosen else [(member, content)]:
                info.size = len(now)
                archive.addfile(info, io.BytesIO(now))
    return buffer.getvalue()


def damaged(member, content, rng):
    """Returns what stands in for a member of an archive."""
    kind = rng.choice(("bytes", "bytes", "json", "json", "other", "remove", "folder", "extra"))
    if kind == "remove":
        return []
    if kind == "extra":
        name = rng.choice(("9" * 30, "\u00b2", "3.damaged-1", "5", "x", "2.orbax-checkpoint-tmp"))
        extra = tarfile.TarInfo(f"checkpoints/{name}" if rng.random() < 0.7 else f"{name}.tmp")
        extra.type = rng.choice((tarfile.REGTYPE, tarfile.DIRTYPE))
        return [(member, content), (extra, b"")]
    if kind == "folder" or not member.isfile():
        other = tarfile.TarInfo(member.name)
        other.type, other.mode = (tarfile.DIRTYPE if member.isfile() else tarfile.REGTYPE), 0o755
        return [(other, b"")]
    if kind == "other":
        return [(member, rng.choice(OTHERS))]
    if kind == "json":
        lines = content.split(b"\n") if member.name.endswith(".jsonl") else [content]
        place = rng.randrange(len(lines))
        try:
            lines[place] = json_value(lines[place], rng)
        except ValueError:
            lines[place] = rng.choice(BYTES)(content, rng) if content else b"\n"
        return [(member, b"\n".join(lines))]
    return [(member, rng.choice(BYTES)(content, rng) if content else b"\0")]


def read(path):
    """Resumes the run of an archive as the trainer does, and reads it as commands do."""
    workdir = path.parent / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir()
    with tarfile.open(path) as archive:
        for member in archive:
            over = workdir / member.name
            if over.parent.is_dir() and not over.exists():  # below what is a file now, nothing is
                archive.extract(member, workdir, filter="data")
    read_config(workdir)
    read_metrics(workdir)
    with claimed(workdir, CONFIG, DATA):
        start = read_start(workdir, name="vit", fields={})
        with Checkpoints(workdir / "checkpoints", newest=9, data=DATA) as checkpoints:
            found, step = checkpoints.restore_or(lambda: state(0), like(state(0)))
            logs = [make(workdir, start_step=step) for make in (Jsonl, TensorBoard)]
            for log in logs:
                log.log(step + 1, {"train/loss": 0.5})
                log.close()
            checkpoints.save(state(step + 1), next_batch=step + 1, metrics={"test/accuracy": 1.0})
    kernel = np.asarray(found.params["head"]["kernel"])
    np.testing.assert_array_equal(kernel, state(step).params["head"]["kernel"])
    return {"kernel": kernel}, step, start is None, read_metrics(workdir)
