"""Who asks: one known key in one header, or nobody."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from router.api.callers import Headers, authenticate
from router.errors import InvalidKey
from router.ledger.keys import KeyBook, Keyring, new_text
from serving.catalogue import DataClass, KeyDefaults

NOW = time.time()


@dataclass
class Gate:
    keyring: Keyring
    text: str
    id: str

    def refuses(self, *headers: tuple[bytes, bytes]) -> str:
        with pytest.raises(InvalidKey) as refused:
            authenticate(list(headers), self.keyring, NOW)
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
        assert self.text not in refused.value.message
        return refused.value.message


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    pepper = secrets.token_hex(32)
    with contextlib.closing(KeyBook(tmp_path / "ledger.sqlite", pepper)) as book:
        key, text = book.create("search", DataClass.internal, KeyDefaults())
        with contextlib.closing(Keyring(tmp_path / "ledger.sqlite", pepper)) as keyring:
            yield Gate(keyring, text, key.id)


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER  "])
def test_a_bearer_key_is_its_caller(gate: Gate, scheme: bytes) -> None:
    headers: Headers = [(b"host", b"x"), (b"authorization", scheme + gate.text.encode())]
    caller = authenticate(headers, gate.keyring, NOW)
    assert (caller.key, caller.team, caller.data_class) == (gate.id, "search", DataClass.internal)


def test_one_key_in_both_headers_is_one_key(gate: Gate) -> None:
    text = gate.text.encode()
    both = [(b"authorization", b"Bearer " + text), (b"x-api-key", text)]
    assert authenticate(both, gate.keyring, NOW).key == gate.id


def test_x_api_key_is_taken_too(gate: Gate) -> None:
    assert authenticate([(b"x-api-key", gate.text.encode())], gate.keyring, NOW).key == gate.id


def test_no_key_several_keys_and_other_schemes_are_refused(gate: Gate) -> None:
    text = gate.text.encode()
    bearer = (b"authorization", b"Bearer " + text)
    assert "No API key" in gate.refuses()
    for told in (gate.refuses(), gate.refuses(bearer, bearer), gate.refuses((b"authorization", text))):
        assert "`Authorization: Bearer" in told and "`x-api-key:" in told, "both ways to send it are named"
    # Two headers, even two equal ones: a proxy in front might have checked the other.
    assert "not several" in gate.refuses(bearer, bearer)
    assert "not several" in gate.refuses((b"x-api-key", text), (b"x-api-key", text))
    assert "not several" in gate.refuses(bearer, (b"x-api-key", new_text().encode()))
    gate.refuses((b"authorization", text))
    gate.refuses((b"authorization", b"Basic " + text))
    gate.refuses((b"authorization", b""))
    gate.refuses((b"authorization", b"Bearer "))
    gate.refuses((b"authorization", b"Bearer " + text + b", Bearer " + text))
    gate.refuses((b"x-api-key", b"Bearer " + text))


def test_noise_is_refused_and_never_crashes(gate: Gate) -> None:
    text = gate.text.encode()
    for bad in (
        b"\x00", text + b"\x00", text[:-1] + b"\xff", "hg_ключ".encode(), b"\xff" * 64, b"hg_" * 20, b"_", b"hg__",
        text[:-1], text + b"0", text.swapcase(), b"x" * 200, b"x" * 201, b"x" * 2**20, text + b" " + text,
    ):  # fmt: skip
        gate.refuses((b"authorization", b"Bearer " + bad))
        gate.refuses((b"x-api-key", bad))


def test_a_well_formed_key_of_somebody_else_reads_like_any_other_wrong_key(gate: Gate) -> None:
    unknown = gate.refuses((b"x-api-key", new_text().encode()))
    assert unknown == gate.refuses((b"x-api-key", b"nonsense"))
