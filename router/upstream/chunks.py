"""Whole chunks of a chunked body, known by their bytes alone. Pure."""

from __future__ import annotations

MOST = 1024
"""Bytes of a chunk that is looked for; larger ones cost little for what they hold."""
_SIZES = {b"%x" % size: size for size in range(1, MOST)}
"""A chunk's size as nearly everybody writes it → the size."""
_FRONTS = {len(line) + size + 4: line + b"\r\n" for line, size in _SIZES.items()}
"""How many bytes a whole chunk takes → the line it begins with."""


def unframed(data: bytes) -> bytes | None:
    """What these bytes hold if they are whole chunks and nothing else; None where only a parser can say."""
    front = _FRONTS.get(len(data))
    if front is not None and data.startswith(front) and data.endswith(b"\r\n"):  # the usual case: one
        return data[len(front) : -2]
    parts, at = [], 0
    while at < len(data):
        begin = data.find(b"\r\n", at, at + 5) + 2
        size = _SIZES.get(data[at : begin - 2]) if begin > 1 else None
        if size is None or data[begin + size : begin + size + 2] != b"\r\n":
            return None
        parts.append(data[begin : begin + size])
        at = begin + size + 2
    return b"".join(parts)
