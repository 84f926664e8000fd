"""Fuzz target: values of headers, from callers and from upstreams. Each is read as it is meant, or refused by name."""

from __future__ import annotations

from typing import Any

from router.api.answers import header_value
from router.api.asking import LABEL, MAX_SESSION, make_ask
from router.api.callers import authenticate
from router.api.heads import HOST, read_head
from router.errors import BadRequest, HeadgateError, InvalidKey
from router.upstream.failures import MAX_RETRY_AFTER_S, asked_pause
from serving.catalogue import DataClass

NOW = 1_800_000_000.0
KNOWN = frozenset(DataClass.__members__)


class Nobody:
    """A keyring without keys."""

    def find(self, text: str, now: float) -> None:
        assert isinstance(text, str) and len(text) <= 200, "an endless key was looked up"


def check(data: bytes) -> None:
    """Raises AssertionError where a value is misread, anything else where one is not met at all."""
    check_pause(data.decode("latin-1"))
    check_host(data)
    check_choices(data)
    check_key(data)
    shown = header_value(data.decode("utf-8", "replace"))
    assert all(32 <= byte < 127 for byte in shown), shown


def check_pause(text: str) -> None:
    """Retry-After: seconds or a date, never beyond the bounds."""
    pause = asked_pause(text, NOW)
    assert pause is None or 0 <= pause <= MAX_RETRY_AFTER_S, pause
    plain = text.strip()
    if plain.isascii() and plain.isdigit():
        assert pause == min(int(plain), MAX_RETRY_AFTER_S), (plain, pause)
    if not any("0" <= letter <= "9" for letter in text):
        assert pause is None, (plain, pause)


def check_host(value: bytes) -> None:
    """A host is a name or an address, and a port."""
    try:
        head = read_head(b"GET / HTTP/1.1\r\nHost: " + value + b"\r\n\r\n")
    except HeadgateError:
        return
    (given,) = [text for name, text in head.headers if name == b"host"]
    assert HOST.fullmatch(given) and not set(given) & set(b"/\\@#?% \t,;<>\"'\r\n\0"), given


def check_choices(value: bytes) -> None:
    """What a caller may choose in headers: a higher class, a short reason, a session."""
    for name in (b"x-headgate-data-class", b"x-headgate-escalate", b"x-headgate-reason", b"x-headgate-session"):
        body: dict[str, Any] = {"model": "auto"}
        try:
            ask = make_ask("req_1", "chat/completions", body, 10, [(name, value)])
        except BadRequest as refused:
            assert len(refused.message) < 1000 + 4 * len(value)
            continue
        assert ask.session is None or len(ask.session) <= MAX_SESSION
        assert ask.escalate is None or LABEL.fullmatch(ask.escalate)
        assert ask.declassify is None or LABEL.fullmatch(ask.declassify)
        if name == b"x-headgate-data-class":
            labels = {label.strip().lower() for label in value.decode("latin-1").split(",")}
            assert ask.data_class is not None and labels <= KNOWN, (value, ask.data_class)
            assert all(ask.data_class >= DataClass[label] for label in labels), (value, ask.data_class)


def check_key(value: bytes) -> None:
    """A key nobody has is refused, whatever its bytes."""
    keyring: Any = Nobody()
    for name in (b"authorization", b"x-api-key"):
        for given in (value, b"Bearer " + value):
            try:
                authenticate([(name, given)], keyring, NOW)
            except InvalidKey:
                continue
            raise AssertionError("taken")


if __name__ == "__main__":
    from tests.fuzz.driver import drive

    drive("headers")
