"""The ways in which a fuzz target is given the same bytes: whole, in three pieces, and byte by byte."""

from __future__ import annotations


def cuts(sent: bytes, first: int, second: int) -> list[list[bytes]]:
    """`first` and `second` (0 to 255) say where the three pieces end; one of them may be empty."""
    a, b = sorted((first * len(sent) // 255, second * len(sent) // 255))
    return [[sent], [sent[:a], sent[a:b], sent[b:]], [bytes([byte]) for byte in sent]]
