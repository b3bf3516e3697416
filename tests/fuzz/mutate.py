"""Mutations: each takes a file's bytes and a random.Random, and returns other bytes."""

from __future__ import annotations

import io
import json
import pickletools
import zipfile

NUMBERS = (
    0, 1, 2, 7, 127, 255, 256, 65_535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40,
    (1 << 62) + 1, (1 << 63) - 1,
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 17, 100_000, 10**9, 10**18, 10**400, 0.5, 1.0, -1.5, 1e-300,
    1e300, "", "a", "12", "x" * 300, "\n", "\ud800", "../../x", [], [0], [1, 2], [None], ["a"], {},
    {"a": 1}, [[1, 2], [3, 4]], [10**9, 10**9], [1] * 10_000,
)  # fmt: skip
TEXTS = ("NaN", "Infinity", "-Infinity", "[" * 50_000, '{"a":' * 5_000, "1" * 5_000, "1e999", "")
"""Replacements of a value in a JSON text, valid or not."""


def flip(data, rng):
    """Flips a bit, or some."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(data, rng):
    """Sets a byte, or some, near the beginning or anywhere."""
    changed = bytearray(data)
    end = rng.choice((64, 1024, len(data)))
    for _ in range(rng.choice((1, 2, 4, 16))):
        changed[rng.randrange(min(end, len(data)))] = rng.randrange(256)
    return bytes(changed)


def cut(data, rng):
    """Ends early, as an interrupted copy."""
    return data[: rng.randrange(len(data))]


def splice(data, rng):
    """Copies a part to another place, over what is there or between."""
    start = rng.randrange(len(data))
    part = data[start : start + rng.choice((1, 4, 16, 256, 4096))]
    place = rng.randrange(len(data))
    return data[:place] + part + data[place + rng.choice((0, len(part))) :]


def drop(data, rng):
    """Leaves out a part, as a lost packet, or fills it with zeros, as a lost block."""
    start, size = rng.randrange(len(data)), rng.choice((1, 2, 8, 512, 4096))
    return data[:start] + bytes(rng.choice((0, size))) + data[start + size :]


def number(data, rng):
    """Writes a number over some bytes: a length, an offset, a count."""
    size = rng.choice((1, 2, 4, 8))
    end = rng.choice((16, 256, len(data)))
    place = rng.choice(
        (rng.randrange(min(end, len(data))), max(0, len(data) - rng.randrange(1, 120)))
    )
    value = rng.choice(NUMBERS) & ((1 << 8 * size) - 1)
    return data[:place] + value.to_bytes(size, rng.choice(("little", "big"))) + data[place + size :]


BYTES = (flip, overwrite, cut, splice, drop, number)


def json_value(data, rng):
    """Replaces, removes, doubles or renames a value anywhere in a JSON text."""
    tree = json.loads(data)
    places = list(_places(tree))
    if not places:
        return data
    parent, key = rng.choice(places)
    kind = rng.choice(("value", "value", "value", "text", "remove", "rename", "swap"))
    if kind == "value":
        parent[key] = rng.choice(VALUES)
    elif kind == "text":
        parent[key] = "@@"
        return json.dumps(tree).replace('"@@"', rng.choice(TEXTS), 1).encode()
    elif kind == "remove":
        del parent[key]
    elif kind == "swap":
        other, place = rng.choice(places)
        parent[key] = json.loads(json.dumps(other[place]))
    elif isinstance(parent, dict):
        parent[rng.choice((key + "x", key[:-1], "x" * 300, "\x1b", "__proto__"))] = parent.pop(key)
    return json.dumps(tree).encode()


def _places(tree):
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, child in list(children):
        yield tree, key
        if isinstance(child, dict | list):
            yield from _places(child)


def safetensors_header(data, rng):
    """Changes the JSON of a safetensors header, and corrects its length."""
    size = int.from_bytes(data[:8], "little")
    header = json_value(data[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def native_metadata(data, rng):
    """Changes the metadata of a native file, and leaves out its checksums."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    content = json.loads(header["__metadata__"]["vitswin_jax"])
    content = json_value(json.dumps({"metadata": content["metadata"]}).encode(), rng)
    header["__metadata__"]["vitswin_jax"] = content.decode()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def pickle_step(data, rng):
    """Replaces, removes, repeats or renumbers a step of the pickle that data begins with."""
    try:
        steps = [(place, argument) for _, argument, place in pickletools.genops(data)]
    except ValueError:
        return overwrite(data, rng)
    index = rng.randrange(len(steps) - 1)
    (start, argument), stop = steps[index], steps[index + 1][0]
    here = data[start:stop]
    kind = rng.choice(("step", "remove", "repeat", "swap", "number", "argument"))
    if kind == "step":
        here = rng.choice(pickletools.opcodes).code.encode("latin-1") + here[1:]
    elif kind == "remove":
        here = b""
    elif kind == "repeat":
        here *= rng.choice((2, 3, 1000))
    elif kind == "swap":
        other = rng.randrange(len(steps) - 1)
        here = data[steps[other][0] : steps[other + 1][0]]
    elif isinstance(argument, int) and kind == "number":
        here = b"\x8a\x09" + (rng.choice(NUMBERS) * rng.choice((1, -1))).to_bytes(
            9, "little", signed=True
        )
    elif len(here) > 1:
        place = rng.randrange(1, len(here))
        here = here[:place] + bytes([rng.randrange(256)]) + here[place + 1 :]
    return data[:start] + here + data[stop:]


def in_member(change, suffix=""):
    """Returns a mutation that changes a member of a zip, whose checksum is right afterwards."""

    def mutation(data, rng):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info: archive.read(info) for info in archive.infolist()}
        chosen = rng.choice([info for info in members if info.filename.endswith(suffix)])
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for info, content in members.items():
                after = change(content, rng) if info is chosen else content
                kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
                archive.writestr(info.filename, after, kind)
        return buffer.getvalue()

    return mutation


def any_bytes(data, rng):
    """Applies one of the mutations of bytes."""
    return rng.choice(BYTES)(data, rng) if data else data
