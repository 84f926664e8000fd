"""From the headers of a request to its caller. Deny by default."""

from __future__ import annotations

from router.errors import InvalidKey
from router.ledger.keys import Keyring
from router.records import Caller

Headers = list[tuple[bytes, bytes]]
MAX_KEY_BYTES = 200
HOW = "send it as `Authorization: Bearer hg_…` or as `x-api-key: hg_…`"


def authenticate(headers: Headers, keyring: Keyring, now: float) -> Caller:
    """The caller whose key stands in `Authorization: Bearer` or `x-api-key`. Raises InvalidKey."""
    text: bytes | None = None
    seen = 0
    for name, value in headers:
        if name == b"authorization" or name == b"x-api-key":
            given = _bearer(value) if name == b"authorization" else value
            # Two headers of one name, even equal ones, are refused: a proxy in front might have checked the other.
            kind = 1 if name == b"authorization" else 2
            if seen & kind or text not in (None, given):
                raise InvalidKey(f"Give one key, not several: {HOW}.")
            text, seen = given, seen | kind
    if text is None:
        raise InvalidKey(f"No API key was given: {HOW}.")
    caller = keyring.find(text.decode("ascii", "replace"), now) if len(text) <= MAX_KEY_BYTES else None
    if caller is None:
        raise InvalidKey("This API key is not known here, or has been revoked or has expired.")
    return caller


def _bearer(value: bytes) -> bytes:
    scheme, _, text = value.partition(b" ")
    if scheme.lower() != b"bearer":
        raise InvalidKey(f"This is no key: {HOW}.")
    return text.strip()
