"""Texts that must not be found where they do not belong, all made at run time: none of them is in the repository."""

from __future__ import annotations

import base64
import re
import secrets
import string
import zlib
from collections.abc import Iterable

DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase


def word() -> str:
    """A word no detector knows, and nobody else has made."""
    return "heron" + secrets.token_hex(8)


def credential() -> str:
    """A made-up token of the form of GitHub's, with the checksum that those have; it opens nothing."""
    body = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(30))
    check, text = zlib.crc32(body.encode()), ""
    while check:
        check, rest = divmod(check, 62)
        text = DIGITS[rest] + text
    return "ghp" + "_" + body + text.rjust(6, "0")


def card() -> str:
    """A made-up number of a payment card with its check digit; nobody's."""
    digits = "4539" + "".join(secrets.choice(string.digits) for _ in range(11))
    return digits + next(last for last in string.digits if _luhn(digits + last))


def iban() -> str:
    """A made-up German account number with its check digits; nobody's."""
    account = secrets.choice("123456789") + "".join(secrets.choice(string.digits) for _ in range(17))
    return f"DE{98 - int(account + '131400') % 97:02}{account}"


def _luhn(digits: str) -> bool:
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value // 10 + value % 10 for value in doubled) % 10 == 0


DETECTED = (credential, card, iban)
"""Texts of three kinds that detectors find: one by its form, two by their check digits."""


def detected(place: str) -> str:
    """A text that a detector finds, of a kind that the place's name chooses: every run the same one."""
    return DETECTED[zlib.crc32(place.encode()) % len(DETECTED)]()


def found_in(texts: Iterable[str], data: bytes) -> list[str]:
    """Those of `texts` that stand in `data`, as they are or in a form they could have been written in on the way.

    Those of one kind begin alike, so one pass over the data is enough, however many they are.
    """
    ours = set(texts)
    found = {one for match in PLAIN.findall(data) if (one := match.decode()) in ours}
    found |= {one for match in REVERSED.findall(data) if (one := match.decode()[::-1]) in ours}
    for match in HEX.findall(data):
        found |= {one for one in ours if one.encode().hex().startswith(match.decode())}
    for match in BASE64.findall(data):
        found |= {one for one in ours if base64.b64encode(one.encode()).startswith(match)}
    return sorted(found)


PLAIN = re.compile(rb"heron[0-9a-f]{16}|ghp_[A-Za-z0-9]{36}|(?<![0-9])4539[0-9]{12}(?![0-9])|DE[0-9]{20}")
REVERSED = re.compile(rb"[0-9a-f]{16}noreh|[A-Za-z0-9]{36}_phg|(?<![0-9])[0-9]{12}9354(?![0-9])|[0-9]{20}ED")
HEX = re.compile(rb"(?:6865726f6e|6768705f|34353339|4445(?=3[0-9]3))[0-9a-f]{16,32}")
BASE64 = re.compile(rb"(?:aGVyb2|Z2hwX|NDUzO|REU)[A-Za-z0-9+/]{17}")
