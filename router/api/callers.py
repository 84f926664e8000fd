"""From the headers of a request to its caller. Deny by default."""

from __future__ import annotations

from router.errors import InvalidKey
from router.ledger.keys import Keyring
from router.records import Caller

Headers = list[tuple[bytes, bytes]]
MAX_KEY_BYTES = 200


def authenticate(headers: Headers, keyring: Keyring, now: float) -> Caller:
    """The caller whose key stands in `Authorization: Bearer` or `x-api-key`. Raises InvalidKey."""
    given = [value for name, value in headers if name == b"authorization"]
    plain = [value for name, value in headers if name == b"x-api-key"]
    if len(given) + len(plain) != 1:
        many = "Give one key, not several" if given or plain else "No API key was given"
        raise InvalidKey(f"{many}: send it as `Authorization: Bearer hg_…`.")
    text = plain[0] if plain else _bearer(given[0])
    caller = keyring.find(text.decode("ascii", "replace"), now) if len(text) <= MAX_KEY_BYTES else None
    if caller is None:
        raise InvalidKey("This API key is not known here, or has been revoked or has expired.")
    return caller


def _bearer(value: bytes) -> bytes:
    scheme, _, text = value.partition(b" ")
    if scheme.lower() != b"bearer":
        raise InvalidKey("Send the key as `Authorization: Bearer hg_…`.")
    return text.strip()
