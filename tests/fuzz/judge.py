"""Verdicts on an input: refused in one line, loaded equal, loaded changed, or a fault."""

from __future__ import annotations

import random
import traceback
from pathlib import Path

from vitswin_jax.core.types import UserError

from .mutate import BYTES
from .seeds import KINDS, made

LINE = 1000  # characters of the longest message

REFUSED, EQUAL, CHANGED, FAULT = "refused in one line", "loaded equal", "changed", "tracebacks"


def equal(found, own):
    """Returns whether two results of `Kind.read` are the same, bit for bit."""
    (arrays, *facts), (own_arrays, *own_facts) = found, own
    return (
        arrays.keys() == own_arrays.keys()
        and facts == own_facts
        and all(
            array.shape == own_arrays[name].shape and array.tobytes() == own_arrays[name].tobytes()
            for name, array in arrays.items()
        )
    )


class Case:
    """The seed of a kind, and the mutated files that are made of it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.fields, self.read = kind, KINDS[kind].fields, KINDS[kind].read
        self.load, self.file, self.data = made(kind, folder / kind)
        self.own = self.read(self.load, **self.fields)

    def mutated(self, draw: int) -> bytes:
        """Returns the bytes of an input: a function of (kind, draw)."""
        rng = random.Random(f"{self.kind}:{draw}")
        kind = KINDS[self.kind]
        data = rng.choice(kind.all_mutations)(self.data, rng)
        while kind.others and data and rng.random() < 0.2:
            data = rng.choice(BYTES)(data, rng)
        return data

    def judge(self, draw: int) -> tuple[str, str]:
        """Returns the outcome of an input, and what was reported."""
        self.file.write_bytes(self.mutated(draw))
        try:
            found = self.read(self.load, **self.fields)
        except UserError as error:
            text = str(error)
            right = text.isprintable() and 0 < len(text) <= LINE
            return (REFUSED if right else FAULT), text
        except Exception:
            return FAULT, traceback.format_exc(limit=-4)
        finally:
            self.file.write_bytes(self.data)
        return (EQUAL if equal(found, self.own) else CHANGED), ""
