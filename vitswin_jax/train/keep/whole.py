"""The sets of a run's state that the hosts have on their disks, and which of them are whole.

A set of a step is whole if each host has a file with its parts, or can get one from another host,
and if the file of host 0 is there: host 0 alone writes the run's metrics, and it writes those of
the steps up to a set before the set.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax

from vitswin_jax.core.seal import checksum_of
from vitswin_jax.train.hosts.join import gather
from vitswin_jax.train.keep.local_file import names_of, read_set_meta, read_set_names
from vitswin_jax.train.keep.stored import FINGERPRINT, trees_of
from vitswin_jax.train.state import TrainState
from vitswin_jax.weights.formats.orbax import DamagedError

FILE = re.compile(r"(0|[1-9][0-9]{0,17})\.safetensors")


@dataclass(frozen=True)
class SetsOf:
    """The facts that a set must have to be a run's: its `identity`, its data, and its length."""

    owner: Mapping[str, str]
    data: Mapping[str, Any] | None
    total_steps: int

    def fault(self, meta: Mapping[str, Any]) -> str:
        """Returns why a set that states `meta` is not used, or ""."""
        if meta["owner"].get("run") != self.owner["run"]:
            return "is of another run"
        if meta["owner"].get("config") != self.owner["config"]:
            return "is of another config"
        if _as_json(meta["data"].get(FINGERPRINT)) != _as_json(self.data):
            return "is of other data"
        if meta["step"] > self.total_steps:
            return f"is later than the run's end, step {self.total_steps}"
        return ""


class Held(NamedTuple):
    """A file on this host's disk, or what is wrong with it."""

    host: int
    """Whose set it is, by the name of its folder."""
    fault: str
    parts: str = ""
    """A digest of the names of its parts."""
    total: int = 0
    """The checksum of the checksums of all arrays."""


@dataclass(frozen=True)
class Found:
    """A set of a step, as all hosts know of it."""

    step: int
    reason: str
    """Why it is not used, or ""."""
    path: Path
    """The file of this host, if it has one."""
    gets: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """For each host that has no file: the host that has one for it, and whose set it is there."""


def path_in(run: Path, host: int, step: int) -> Path:
    """Returns the place of a host's set in the folder of a run."""
    return run / f"host-{host}" / f"{step}.safetensors"


def steps_of(folder: Path) -> list[int]:
    """Returns the steps of the sets in a folder, in no order."""
    try:
        names = os.listdir(folder)  # noqa: PTH208, names only
    except OSError:
        return []
    return [int(match[1]) for match in map(FILE.fullmatch, names) if match]


def hosts_in(run: Path) -> Iterator[int]:
    """Yields the hosts whose sets the folder of a run has: this host's first."""
    here = jax.process_index()
    names = (path.name.removeprefix("host-") for path in run.glob("host-*"))
    others = {int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,8}", name)}
    yield from (here, *sorted(others - {here}))


def look(run: Path, sets: SetsOf, layout: TrainState, *, shared: bool) -> list[Found]:
    """Returns the sets of all steps, the newest first; all hosts call it.

    A host may have another number than before, so any file on its disk that has its parts will do.
    Where the sets are `shared`, a host without one may get it from another host's disk.
    """
    wanted = _digest(names_of(trees_of(layout)))
    held: dict[int, list[Held]] = {}
    for host in hosts_in(run):
        for step in steps_of(run / f"host-{host}"):
            held.setdefault(step, []).append(_judge(path_in(run, host, step), host, sets))
    told = gather(json.dumps({"wanted": wanted, "held": held}))
    hosts = [json.loads(text) for text in told]
    wants = [host["wanted"] for host in hosts]
    all_held = [
        {int(step): [Held(*each) for each in files] for step, files in host["held"].items()}
        for host in hosts
    ]
    steps = sorted({step for files in all_held for step in files}, reverse=True)
    founds = []
    for step in steps:
        files = [held.get(step, []) for held in all_held]
        reason, used, gets = weigh(wants, files, shared=shared)
        owner = used.get(jax.process_index(), jax.process_index())
        founds.append(Found(step, reason, path_in(run, owner, step), gets))
    return founds


def weigh(
    wants: Sequence[str], files: Sequence[Sequence[Held]], *, shared: bool
) -> tuple[str, dict[int, int], dict[int, tuple[int, int]]]:
    """Returns why a set is not used, or "", whose file each host uses, and what `Found` calls gets.

    `wants` has the digest of each host's parts, and `files` has the files of the step on its disk.
    """
    used: dict[int, int] = {}
    gets: dict[int, tuple[int, int]] = {}
    wrong, totals = [], set()
    for host, want in enumerate(wants):
        order = [host, *(other for other in range(len(wants)) if other != host and shared)]
        fits = (
            (at, each)
            for at in order
            for each in files[at]
            if each.parts == want and not each.fault
        )
        at, file = next(fits, (host, None))
        if file is None:
            why = next((each.fault for each in files[host]), "is missing")
            why = why or "does not have this host's parts"
            wrong.append(f"host {host}: it {why}" if len(wants) > 1 else f"it {why}")
            continue
        totals.add(file.total)
        if at == host:
            used[host] = file.host
        else:
            gets[host] = at, file.host
    if not wrong and len(totals) > 1:
        wrong = ["the hosts have different ones"]
    if not wrong and not any(each.host == 0 and not each.fault for at in files for each in at):
        wrong = ["host 0, which writes the metrics, had not saved it"]
    return (wrong[0], used, {}) if wrong else ("", used, gets)


def fault_of(path: Path, sets: SetsOf) -> str:
    """Returns why a file on this host's disk is not used, by its header, or ""."""
    return _judge(path, 0, sets).fault


def _judge(path: Path, host: int, sets: SetsOf) -> Held:
    try:
        meta, names = read_set_meta(path), read_set_names(path)
    except DamagedError as error:
        return Held(host, str(error))
    if fault := sets.fault(meta):
        return Held(host, fault)
    return Held(host, "", _digest(names), checksum_of(meta["arrays"]))


def clear(run: Path, step: int) -> None:
    """Removes the sets later than a step, of all hosts, and what killed processes left."""
    for host in hosts_in(run):
        folder = run / f"host-{host}"
        remove(run, host, [later for later in steps_of(folder) if later > step])
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                if not FILE.fullmatch(path.name):
                    path.unlink()


def keep_newest(run: Path, host: int, count: int) -> None:
    """Removes all sets of a host but the newest."""
    remove(run, host, sorted(steps_of(run / f"host-{host}"), reverse=True)[count:])


def remove(run: Path, host: int, steps: Sequence[int]) -> None:
    """Removes a host's sets of some steps, as far as that can be done."""
    for step in steps:
        with contextlib.suppress(OSError):
            path_in(run, host, step).unlink()


def _digest(names: set[str]) -> str:
    return f"{len(names)}-{zlib.crc32(json.dumps(sorted(names)).encode())}"


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
