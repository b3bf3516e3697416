"""JSON with a checksum, so that a truncated or changed file is noticed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

CHECKSUM = "checksum"
"""The key of the checksum in sealed content."""


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns JSON content with its checksum.

    >>> unsealed(seal({"step": 3}))
    {'step': 3}
    """
    return {**content, CHECKSUM: checksum_of(content)}


def unsealed(content: Any) -> dict[str, Any] | None:
    """Returns the sealed content, or None if it is not as it was written."""
    if not isinstance(content, dict):
        return None
    sealed = {key: value for key, value in content.items() if key != CHECKSUM}
    return sealed if checksum_of(sealed) == content.get(CHECKSUM) else None


def checksum_of(content: Mapping[str, Any]) -> int:
    """Returns the CRC-32 of content as JSON, its keys sorted."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
