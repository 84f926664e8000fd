"""Permits: leave to send one body to one place once. Pure: the clock and the key are passed in.

The router seals a permit for each attempt at a hosted model; the door checks it and refuses what it does not cover.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import asdict, dataclass, fields

import orjson

LIFETIME_S = 5.0
"""Seconds a permit is valid: long enough to reach the door, too short to be worth keeping."""


class PermitError(Exception):
    """The permit does not cover this sending; the text says in which point."""


@dataclass(frozen=True, slots=True)
class Permit:
    """What one sending was allowed to be. Times are Unix seconds, `body` a SHA-256 in hex."""

    id: str
    """Unique; the door accepts it once."""
    door: str
    """The door instance it is for; another one refuses it."""
    request: str
    key: str
    team: str
    route: str
    provider: str
    model: str
    path: str
    """The path below the provider's base address, e.g. `chat/completions`."""
    data_class: str
    """The class the router found the request to have."""
    body: str
    policy: str
    """The policy version the router decided under; the door holds its own and compares."""
    expires: float
    declassified: str = ""
    """The reason for which a caller who may has lowered the class: a short label; empty where nobody has."""


def body_hash(body: bytes) -> str:
    """SHA-256 of the exact bytes, in hex."""
    return hashlib.sha256(body).hexdigest()


def seal(permit: Permit, secret: str) -> str:
    """The permit as text for a header: base64url(JSON) "." HMAC-SHA-256 in hex."""
    claims = base64.urlsafe_b64encode(orjson.dumps(asdict(permit), option=orjson.OPT_SORT_KEYS)).decode()
    return f"{claims}.{_mac(claims, secret)}"


def check(token: str, secret: str, *, door: str, body: bytes, now: float) -> Permit:
    """Open a sealed permit and hold it against this door, this body and this moment.

    Single use, destination, policy and data class are the door's own to judge. Raises PermitError.
    """
    if not token.isascii():
        raise PermitError("it cannot be read")
    claims, _, mac = token.partition(".")
    if not hmac.compare_digest(mac.encode(), _mac(claims, secret).encode()):
        raise PermitError("its seal is wrong")
    permit = _decode(claims)
    if permit.door != door:
        raise PermitError("it is for another door")
    if not now <= permit.expires <= now + 2 * LIFETIME_S:
        raise PermitError("it has expired, or the clocks disagree")
    if not hmac.compare_digest(permit.body, body_hash(body)):
        raise PermitError("it is for another body")
    return permit


def _mac(claims: str, secret: str) -> str:
    return hmac.new(secret.encode(), claims.encode(), hashlib.sha256).hexdigest()


def _decode(claims: str) -> Permit:
    try:
        found = orjson.loads(base64.urlsafe_b64decode(claims))
        if set(found) != {field.name for field in fields(Permit)}:
            raise PermitError("its fields are not those of a permit")
        permit = Permit(**found)
    except (ValueError, TypeError) as broken:
        raise PermitError("it cannot be read") from broken
    if not isinstance(permit.expires, float | int) or any(
        not isinstance(value, str) for name, value in found.items() if name != "expires"
    ):
        raise PermitError("its fields are not those of a permit")
    return permit
