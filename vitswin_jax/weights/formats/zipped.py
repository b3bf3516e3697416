"""Members of zip files, read in place: npz files and PyTorch's are zip files of tensors."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from vitswin_jax.weights.formats.tensors import (
    DamageError,
    Read,
    allowance,
    part_reader,
    wrong_checksum,
)


def members_of(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Returns the members of a zip file by name; raises DamageError where they claim too much."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
    if sum(info.file_size for info in members.values()) > allowance(path):
        raise DamageError("its members claim more than 8 times its size and 64 MiB")
    return members


def member_reader(path: Path, info: zipfile.ZipInfo, *, checked: bool = True) -> Read:
    """Returns a function that reads bytes of a member, straight from the file where it can.

    A member whose CRC-32 is wrong raises UserError on its first reading, unless `checked` is
    false. Raises DamageError for a member that lies beyond the file's end.
    """
    if info.compress_type == zipfile.ZIP_DEFLATED:
        return lambda offset, size: _inflate(path, info)[offset : offset + size]
    if info.compress_type != zipfile.ZIP_STORED:
        raise DamageError("a member is compressed by another method than deflate")
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
        start = info.header_offset + 30 + name + extra
        if start + info.file_size > file.seek(0, 2):
            raise DamageError("a member is cut short")
    checksum = info.CRC if checked else None
    return part_reader(path, start, info.file_size, name=info.filename, checksum=checksum)


def _inflate(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """Returns the bytes of a compressed member, and never more of them than its entry claims."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(info) as member:
            data = member.read(info.file_size)  # it compares the CRC-32 at the end
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise wrong_checksum(path, info.filename) from error
    if len(data) != info.file_size:
        raise wrong_checksum(path, info.filename)
    return np.frombuffer(data, np.uint8)
