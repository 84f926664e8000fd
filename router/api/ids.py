"""Request ids: 48 bits of time and 80 random bits in base 32 (a ULID), so that they sort and cannot be guessed."""

from __future__ import annotations

import os
import time

BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PAIRS = tuple(one + other for one in BASE32 for other in BASE32)
FIVE_BITS = bytes(ord(BASE32[byte & 31]) for byte in range(256))
"""Any byte as a character of base 32; each of these stands for eight bytes, so that all are equally likely."""
RANDOM, AT_ONCE = 16, 256
"""Characters of one id that carry its 80 random bits, and for how many ids these are drawn together."""


class Ids:
    """Makes ids. The system is asked for randomness once for many of them, and anew in a process that was forked."""

    def __init__(self) -> None:
        self._random, self._at, self._pid = "", 0, 0

    def new(self) -> str:
        """A fresh id."""
        at = self._at
        if at == len(self._random) or self._pid != os.getpid():
            self._random = os.urandom(AT_ONCE * RANDOM).translate(FIVE_BITS).decode()
            self._pid, at = os.getpid(), 0
        self._at = at + RANDOM
        ms = int(time.time() * 1000)
        return (
            f"req_{PAIRS[ms >> 40 & 1023]}{PAIRS[ms >> 30 & 1023]}{PAIRS[ms >> 20 & 1023]}{PAIRS[ms >> 10 & 1023]}"
            f"{PAIRS[ms & 1023]}{self._random[at : at + RANDOM]}"
        )


_IDS = Ids()


def new_id() -> str:
    """A fresh request id."""
    return _IDS.new()
