"""API keys: made once and shown once, kept as an HMAC, found in memory.

A key is `hg_<id>_<secret><checksum>`. The checksum lets a scanner or the edge drop a mistyped key without a look-up.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from router.ledger.changed import Changes
from router.ledger.store import LedgerError, connect
from router.records import Caller, Latency
from serving.catalogue import DataClass, KeyDefaults

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LENGTH, SECRET_LENGTH, CHECK_LENGTH = 8, 43, 6
ID_AT, ID_END = len("hg_"), len("hg_") + ID_LENGTH
"""43 characters of base 62 carry 256 bits."""
COLUMNS = (
    "id, team, data_class, mac, last4, lanes, substitute, budget_usd, created, expires, revoked, scopes, "
    "requests_per_minute, tokens_per_minute, media_class, requires, latency, first"
)
SCOPES = ("escalate", "declassify")
"""What a key may be allowed besides asking: for a stronger model by a header; to lower the class of a request."""
CHANGEABLE = frozenset({
    "team", "data_class", "lanes", "substitute", "budget_usd", "expires", "revoked", "scopes", "requests_per_minute",
    "tokens_per_minute", "media_class", "requires", "latency",
})  # fmt: skip
NOBODYS = "0" * 64
"""In place of a digest where there is no key."""
LOOKS = 20
"""How often a second the table is looked at for keys that are not known; guessing must not cost a look for each."""
PAIRS = tuple(one + other for one in BASE62 for other in BASE62)


class KeyError_(Exception):
    """A key that does not exist or cannot be changed so; one sentence."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is kept. Times are Unix seconds, the budget US dollars a calendar month."""

    id: str
    team: str
    data_class: DataClass
    mac: str
    last4: str
    lanes: frozenset[str]
    substitute: bool
    budget_usd: float | None
    created: float
    expires: float | None
    revoked: float | None
    scopes: frozenset[str] = frozenset()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    media_class: DataClass = DataClass.private
    requires: frozenset[str] = frozenset()
    latency: Latency = "interactive"
    first: str = ""
    """The id of the key that was rotated, and rotated again, into this one; "" where it was made anew."""

    def works(self, now: float) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)

    def caller(self) -> Caller:
        return Caller(
            self.id, self.team, self.data_class, self.lanes, self.substitute, self.scopes, self.budget_usd,
            self.requests_per_minute, self.tokens_per_minute, self.media_class, self.requires, self.latency, self.first,
        )  # fmt: skip


def well_formed(text: str) -> str | None:
    """The id inside a key's text, or None where form or checksum are wrong."""
    parts = text.split("_")
    if len(parts) != 3 or parts[0] != "hg" or len(parts[1]) != ID_LENGTH:
        return None
    if len(parts[2]) != SECRET_LENGTH + CHECK_LENGTH or not text.isascii():
        return None
    body, check = text[:-CHECK_LENGTH], text[-CHECK_LENGTH:]
    return parts[1] if check == _checksum(body) else None


def new_text() -> str:
    """A fresh key's text."""
    letters = "".join(secrets.choice(BASE62) for _ in range(SECRET_LENGTH))
    name = "".join(secrets.choice(BASE62) for _ in range(ID_LENGTH))
    body = f"hg_{name}_{letters}"
    return body + _checksum(body)


def _checksum(body: str) -> str:
    high, low = divmod(zlib.crc32(body.encode()), len(PAIRS))
    return PAIRS[high // len(PAIRS)] + PAIRS[high % len(PAIRS)] + PAIRS[low]


def _mac(pepper: str, text: str) -> str:
    return _keyed(pepper)(text)


def _keyed(pepper: str) -> Callable[[str], str]:
    """What makes a key's digest; the pepper's own part of the work is done once."""
    ready = hmac.new(pepper.encode(), digestmod="sha256")

    def mac(text: str) -> str:
        made = ready.copy()
        made.update(text.encode())
        return made.hexdigest()

    return mac


class KeyBook:
    """The table of keys: changed by the operator's commands, read by the router's `Keyring`.

    No change without its event in the ledger's chain. Every method raises LedgerError where the file cannot be read or
    written.
    """

    def __init__(self, path: Path, pepper: str, user: str = "") -> None:
        """`user`: who changes keys, for the record."""
        self._pepper = pepper
        self._db = connect(path)
        self._changes = Changes(self._db, user)

    def close(self) -> None:
        self._db.close()

    def create(self, team: str, data_class: DataClass, defaults: KeyDefaults, **changed: Any) -> tuple[Key, str]:
        """Make a key. Returns what is kept and the text, which cannot be shown again."""
        text = new_text()
        fields: dict[str, Any] = {
            "lanes": frozenset(defaults.lanes), "substitute": False, "budget_usd": defaults.budget_usd, "expires": None,
            "requests_per_minute": defaults.requests_per_minute, "tokens_per_minute": defaults.tokens_per_minute,
        } | changed  # fmt: skip
        key = Key(
            id=text.split("_")[1], team=team, data_class=data_class, mac=_mac(self._pepper, text), last4=text[-4:],
            created=time.time(), revoked=None, **fields,
        )  # fmt: skip
        with self._transaction():
            self._add(key)
        return key, text

    def _add(self, key: Key, instead: str = "") -> None:
        row = _row(key)
        self._db.execute(f"INSERT INTO keys ({COLUMNS}) VALUES ({','.join('?' * len(row))})", row)  # noqa: S608
        self._changes.write(key.created, key.id, "created", {}, _settings(key), instead)

    def list(self) -> list[Key]:
        return _read(self._db)

    def find(self, name: str) -> Key:
        """By id. Raises KeyError_ where there is none."""
        keys = {key.id: key for key in self.list()}
        if name not in keys:
            raise KeyError_(f"no key has the id {name!r}; see: headgate keys list")
        return keys[name]

    def set(self, name: str, **changed: Any) -> Key:
        """Change a key's settings, all of them or none; the text stays as it is. Raises KeyError_."""
        assert changed and set(changed) <= CHANGEABLE
        with self._transaction():
            return self._set(name, "changed", changed)

    def _set(self, name: str, what: str, changed: dict[str, Any]) -> Key:
        old = self.find(name)
        for named in changed.keys() & {"data_class", "media_class"}:
            changed[named] = changed[named].name
        for listed in changed.keys() & {"lanes", "scopes", "requires"}:
            changed[listed] = ",".join(sorted(changed[listed]))
        columns = ", ".join(f"{column}=?" for column in changed)
        self._db.execute(f"UPDATE keys SET {columns} WHERE id=?", (*changed.values(), name))  # noqa: S608
        new = self.find(name)
        self._changes.write(time.time(), name, what, _settings(old), _settings(new))
        return new

    def rotate(self, name: str, overlap_s: float) -> tuple[Key, str]:
        """A new key with the same settings; the old one works for `overlap_s` seconds more. Raises KeyError_."""
        with self._transaction():
            old, now, text = self.find(name), time.time(), new_text()
            if not old.works(now):
                raise KeyError_(f"{name} no longer works; make a new one with: headgate keys create")
            mac, ends = _mac(self._pepper, text), now + overlap_s
            made = replace(old, id=text.split("_")[1], mac=mac, last4=text[-4:], created=now, first=old.first or name)
            self._add(made, name)
            self._set(name, "changed", {"expires": ends if old.expires is None else min(ends, old.expires)})
        return made, text

    def revoke(self, name: str) -> Key:
        """End it now and for good; when it was ended first stays on record. Raises KeyError_."""
        with self._transaction():
            found = self.find(name)
            return self._set(name, "revoked", {"revoked": time.time()}) if found.revoked is None else found

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it, with what is written down of it, or nothing. Raises LedgerError."""
        with self._changes.all_or_none():
            try:
                with self._db:
                    self._db.execute("BEGIN IMMEDIATE")
                    yield
            except sqlite3.Error as broken:
                raise LedgerError(f"the table of keys cannot be changed: {broken}") from broken


class Keyring:
    """What the router knows of the keys: a copy in memory, read anew when the table has changed.

    Raises LedgerError where the table cannot be read at the start: an unreadable table must not pass for an empty one.
    """

    def __init__(self, path: Path, pepper: str) -> None:
        self._mac = _keyed(pepper)
        self._db = connect(path, read_only=True)  # the router answers callers; only the operator changes keys
        self._version = -1
        self._keys: dict[str, tuple[Key, Caller]] = {}
        self._looks, self._looked = float(LOOKS), time.monotonic()
        try:
            self._look()
        except LedgerError:
            self._db.close()
            raise

    def find(self, text: str, now: float) -> Caller | None:
        """The caller a key belongs to; None where the key is unknown, revoked or expired."""
        name = text[ID_AT:ID_END]
        if name not in self._keys and well_formed(text) and self._may_look():  # made a moment ago, perhaps
            self.refresh()
        key, caller = self._keys.get(name, (None, None))
        # The digest is made and compared for an unknown id too: how long a refusal takes must not tell which ids exist.
        right = hmac.compare_digest(key.mac if key else NOBODYS, self._mac(text))
        return caller if key is not None and right and key.works(now) else None

    def _may_look(self) -> bool:
        """Whether there have not been too many looks in the last second. Who is not seen now is seen within one."""
        now = time.monotonic()
        self._looks = min(float(LOOKS), self._looks + (now - self._looked) * LOOKS)
        self._looked = now
        if self._looks < 1:
            return False
        self._looks -= 1
        return True

    def by_id(self, name: str) -> Caller | None:
        found = self._keys.get(name)
        return found[1] if found else None

    def refresh(self) -> None:
        """Read the table again if another connection has changed the file. Called every second; never raises.

        Where it cannot be read, the keys known so far go on working; what changed is seen when it can be read again.
        """
        with contextlib.suppress(LedgerError):
            self._look()

    def _look(self) -> None:
        try:
            version = self._db.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error as broken:
            raise LedgerError(f"the table of keys cannot be read: {broken}") from broken
        if version != self._version:
            self._keys = {key.id: (key, key.caller()) for key in _read(self._db)}
            self._version = version

    def close(self) -> None:
        self._db.close()


def _settings(key: Key) -> dict[str, Any]:
    """What of a key is written down where it changes: nothing of its secret."""
    found = {name: getattr(key, name) for name in sorted(CHANGEABLE)}
    named = {name: found[name].name for name in ("data_class", "media_class")}
    return found | named | {name: sorted(found[name]) for name in ("lanes", "scopes", "requires")}


def _row(key: Key) -> tuple[Any, ...]:
    return (
        key.id, key.team, key.data_class.name, key.mac, key.last4, ",".join(sorted(key.lanes)), int(key.substitute),
        key.budget_usd, key.created, key.expires, key.revoked, ",".join(sorted(key.scopes)), key.requests_per_minute,
        key.tokens_per_minute, key.media_class.name, ",".join(sorted(key.requires)), key.latency, key.first,
    )  # fmt: skip


def _listed(text: str) -> frozenset[str]:
    return frozenset(filter(None, text.split(",")))


def _read(db: sqlite3.Connection) -> list[Key]:
    try:
        rows = db.execute(f"SELECT {COLUMNS} FROM keys ORDER BY created").fetchall()  # noqa: S608
        return [
            Key(r[0], r[1], DataClass.parse(r[2]), r[3], r[4], _listed(r[5]), bool(r[6]), r[7], r[8],
                r[9], r[10], _listed(r[11]), r[12], r[13], DataClass.parse(r[14]), _listed(r[15]), r[16], r[17])
            for r in rows
        ]  # fmt: skip
    except (sqlite3.DatabaseError, ValueError) as broken:
        raise LedgerError(f"the table of keys cannot be read: {broken}") from broken
