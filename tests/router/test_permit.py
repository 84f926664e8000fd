"""A permit covers one body, one door and one moment; a single changed character makes it void."""

from __future__ import annotations

import base64
import secrets
from dataclasses import asdict

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.permit import LIFETIME_S, Permit, PermitError, _mac, body_hash, check, seal

SECRET = secrets.token_hex(32)
BODY = b'{"model":"m"}'
NOW = 1_000_000.0
GOOD = Permit(
    id="p1", door="d1", request="r1", key="k1", team="t1", route="chat/completions", provider="far", model="m",
    path="chat/completions", data_class="public", body=body_hash(BODY), policy="v1", expires=NOW + LIFETIME_S,
)  # fmt: skip


def test_a_good_permit_comes_back_as_it_was_sealed() -> None:
    assert check(seal(GOOD, SECRET), SECRET, door="d1", body=BODY, now=NOW) == GOOD


@pytest.mark.parametrize(
    ("door", "body", "now", "why"),
    [
        ("d2", BODY, NOW, "another door"),
        ("d1", BODY + b" ", NOW, "another body"),
        ("d1", b"", NOW, "another body"),
        ("d1", BODY, NOW + LIFETIME_S + 0.001, "expired"),
        ("d1", BODY, NOW - 2 * LIFETIME_S, "clocks"),
        ("d1", BODY, float("nan"), "clocks"),
    ],
)
def test_what_it_does_not_cover_is_refused(door: str, body: bytes, now: float, why: str) -> None:
    with pytest.raises(PermitError, match=why):
        check(seal(GOOD, SECRET), SECRET, door=door, body=body, now=now)


def test_another_secret_opens_nothing() -> None:
    with pytest.raises(PermitError, match="seal"):
        check(seal(GOOD, SECRET), secrets.token_hex(32), door="d1", body=BODY, now=NOW)


@given(st.data())
def test_any_changed_character_voids_it(data: st.DataObject) -> None:
    token = seal(GOOD, SECRET)
    place = data.draw(st.integers(0, len(token) - 1))
    new = data.draw(st.characters().filter(lambda c: c != token[place]))
    with pytest.raises(PermitError):
        check(token[:place] + new + token[place + 1 :], SECRET, door="d1", body=BODY, now=NOW)


@given(st.text(max_size=200))
def test_noise_is_refused_and_never_crashes(token: str) -> None:
    with pytest.raises(PermitError):
        check(token.encode("utf-8", "replace").decode(), SECRET, door="d1", body=BODY, now=NOW)


@pytest.mark.parametrize("claims", [{}, {**asdict(GOOD), "more": 1}, [], 7, None])
def test_sealed_claims_of_another_form_are_refused(claims: object) -> None:
    text = base64.urlsafe_b64encode(orjson.dumps(claims)).decode()
    with pytest.raises(PermitError):
        check(f"{text}.{_mac(text, SECRET)}", SECRET, door="d1", body=BODY, now=NOW)
