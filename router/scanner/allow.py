"""Pure: what is found and harmless: examples, documentation and private addresses, the site's own domains."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from string import ascii_letters, ascii_lowercase, ascii_uppercase, digits, hexdigits

EXAMPLE_DOMAINS = ("example.com", "example.net", "example.org", "example", "test", "invalid", "localhost", "local")
"""RFC 2606 and 6761, and `.local`: nobody's mail arrives there."""
_MAILBOX = ascii_letters + digits + "._%+-"
_ADDRESS = hexdigits + ":."
_FICTION = re.compile(r"555[ .-]?01[0-9]{2}$")
_PUBLIC_BLOB = re.compile(
    r"(?:(?:md5|sha-?(?:1|224|256|384|512)|blake2[bs]?|integrity|checksum|digest|hash)[\"']?\s{0,2}[-:=_ ]\s{0,2}[\"']?"
    r"|ssh-(?:rsa|ed25519|dss) |ecdsa-sha2-nistp[0-9]{3} )[0-9A-Za-z+/=_-]+$",
    re.IGNORECASE,
)
"""Hashes as lock files and subresources write them, and the public halves of keys."""
_HASH = re.compile(
    r"(?<![0-9A-Za-z+/=_-])(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{56}|[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})$"
)
_RUN = re.compile(r"[0-9A-Za-z+/=_-]+$")
_WORD = re.compile(r"(?:[A-Za-z]{0,20}|[0-9]{1,6}[a-z]?)[0-9]{0,4}")
_MACHINES = frozenset({"git", "hg", "svn", "noreply", "no-reply", "postmaster"})
"""Mailboxes that are no person's."""


def allowed(kind: str, text: str, own_domains: Iterable[str]) -> bool:
    """Whether a candidate of this kind that passed its check is harmless after all."""
    if kind == "email":
        return _email(text, own_domains)
    if kind == "ip":
        return _ip(text)
    if kind == "mac":
        return _mac(text)
    if kind == "blob":
        return _blob(text)
    return kind == "phone" and _FICTION.search(text) is not None


def within(domain: str, domains: Iterable[str]) -> bool:
    """Whether a domain is one of these, or below one of them."""
    return any(domain == one or domain.endswith(f".{one}") for one in domains)


def _blob(text: str) -> bool:
    """A hash, the public half of a key, an alphabet, or a path: words with slashes between them, and hashes."""
    if _PUBLIC_BLOB.search(text) or _HASH.search(text):
        return True
    found = _RUN.search(text)
    run = found[0] if found else ""
    if any(alphabet in run for alphabet in (ascii_lowercase, ascii_uppercase)):
        return True
    return "/" in run and all(_HASH.search(part) or _is_named(part) for part in run.split("/"))


def _is_named(part: str) -> bool:
    return all(_WORD.fullmatch(word) for word in re.split("[-_+]", part))


def _email(text: str, own_domains: Iterable[str]) -> bool:
    before, _, domain = text.rpartition("@")
    name = before[len(before.rstrip(_MAILBOX)) :].lower()
    domain = domain.lower().rstrip(".")
    return name in _MACHINES or within(domain, EXAMPLE_DOMAINS) or within(domain, own_domains)


def _ip(text: str) -> bool:
    """Private, loopback, link-local, documentation: RFC 1918, 4193, 5737, 3849 and what else is nobody's alone."""
    try:
        address = ipaddress.ip_address(text[len(text.rstrip(_ADDRESS)) :])
    except ValueError:
        return False
    return not address.is_global or address.is_multicast


def _mac(text: str) -> bool:
    """Nobody's: all zeros, all ones, and the documentation block of RFC 7042."""
    digits = re.sub(r"[^0-9a-f]", "", text.lower()[-17:])[-12:]
    return len(set(digits)) <= 1 or digits.startswith("00005e0053")
