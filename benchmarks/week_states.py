"""The states of a run of week.py on its disks: which are whole, and how faults damage them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DISK = "disk"
"""The folder of a host's local sets, in a folder of the host."""
HOW = ("cut off", "bit flipped", "file removed")
DAMAGES = (
    *(f"{what}: {how}" for what in ("checkpoint", "set") for how in HOW),
    "disk emptied",
    "disks emptied, checkpoint: file removed",
)


class States:
    """The checkpoints of a run and the local sets of its hosts.

    A fault damages a checkpoint only where another one is whole, so that a run can always resume.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._damaged: dict[tuple[Path, int, int], str] = {}
        self._parts: dict[int, Any] = {}

    def note(self, begin: int, topology: Any) -> None:
        """Notes that sets of steps after `begin` are of a start with this topology."""
        for step, _ in self._sets():
            if step > begin:
                self._parts[step] = topology.parts

    def newest(self, topology: Any) -> int:
        """Returns the step of the newest whole state that fits a topology; 0 without one.

        Each host of a series has all parts of a state, so one whole file of a set is enough: that
        of host 0, which alone has written the metrics until then. A host reads its file before it
        knows of a flipped bit, so a step with one does not count.
        """
        steps = {0, *(int(path.name) for path in self.checkpoints())}
        how = {path: self._damaged.get(_mark(path), "") for _, path in self._sets()}
        flipped = {int(path.stem) for path in how if how[path] == "bit flipped"}
        whole = {int(path.stem) for path in how if path.parent.name == "host-0" and not how[path]}
        fits = {step for step in whole if self._parts[step] == topology.parts}
        return max(steps | fits - flipped)

    def checkpoints(self) -> list[Path]:
        """Returns the whole checkpoints, the newest last."""
        folders = [path for path in self._folder.glob("run/checkpoints/*") if path.name.isdigit()]
        whole = [path for path in folders if _mark(path) not in self._damaged]
        return sorted(whole, key=lambda path: int(path.name))

    def disks(self) -> list[Path]:
        """Returns the disks of the hosts."""
        return sorted(self._folder.glob(f"host-*/{DISK}"))

    def damage(self, kind: str, dice: random.Random) -> None:
        """Damages what one of `DAMAGES` names: the newest of its kind, if there is one."""
        if kind.startswith("disk"):
            disks = self.disks()
            for disk in disks if kind.startswith("disks") or not disks else [dice.choice(disks)]:
                for path in disk.iterdir():
                    shutil.rmtree(path)
        what, _, how = kind.rpartition(", ")[2].partition(": ")
        if what == "checkpoint" and len(whole := self.checkpoints()) > 1:
            files = sorted(path for path in whole[-1].rglob("*") if path.is_file())
            path = dice.choices(files, weights=[path.stat().st_size for path in files])[0]
            damage(path, how, dice)
            self._damaged[_mark(whole[-1])] = how
        if what == "set" and (sets := sorted(self._sets())):
            path = dice.choice([path for step, path in sets if step == sets[-1][0]])
            damage(path, how, dice)
            if path.exists():
                self._damaged[_mark(path)] = how

    def _sets(self) -> Iterator[tuple[int, Path]]:
        for disk in self.disks():
            for path in disk.glob("*/host-*/*.safetensors"):
                if path.stem.isdigit():
                    yield int(path.stem), path


def _mark(path: Path) -> tuple[Path, int, int]:
    """Returns the marks of a file or folder, which another one in its place has not."""
    facts = path.stat()
    return path, facts.st_ino, facts.st_mtime_ns


def damage(path: Path, how: str, dice: random.Random) -> None:
    """Damages a file in one of the ways of `HOW`."""
    content = bytearray(path.read_bytes())
    if how == "file removed":
        path.unlink()
    elif how == "cut off":
        path.write_bytes(content[: dice.randrange(len(content))])
    else:
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
