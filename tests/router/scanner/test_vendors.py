"""Credentials without a form of their own are found beside their vendor's word, and nothing else is taken for one."""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from router.scanner import rules, vendors
from router.scanner.credentials import CREDENTIALS
from router.scanner.scanner import Scanner
from serving.catalogue import Privacy
from tests.fakes.searching import kinds, search

CHANCE = random.Random(11)
SMALL = string.ascii_lowercase + string.digits
HEX = "0123456789abcdef"
WRITTEN = ('{name} = "{value}"', "{NAME}_SECRET={value}", "{name}: {value}", "{name}_x => '{value}'",
           '"{name}":"{value}"', "{name} key := `{value}`")  # fmt: skip
VALUES = {
    "algolia": 32, "codecov": 32, "coinbase": 64, "datadog": 40, "drone": 32, "etsy": 24, "fastly": 32, "flickr": 32,
    "intercom": 60, "launchdarkly": 40, "mattermost": 26, "nytimes": 32, "okta": 42, "private-ai": 32, "sonar": 40,
    "sumo": 64, "travis": 22, "twitch": 30, "zendesk": 40, "confluent": 64, "plaid": 24,
}  # fmt: skip


def drawn(alphabet: str, size: int) -> str:
    return "".join(CHANCE.choice(alphabet) for _ in range(size))


def unique() -> str:
    return str(uuid.UUID(int=CHANCE.getrandbits(128)))


@pytest.fixture(scope="module")
def used() -> Iterator[Scanner]:
    with TemporaryDirectory() as folder:
        yield Scanner(rules.of(Privacy(), CREDENTIALS), Path(folder))


def test_what_a_vendor_gives_out_is_found_beside_its_word(used: Scanner) -> None:
    """Few that chance makes have no digits to speak of; those that are missed are a handful in a hundred."""
    missed = []
    for name, size in VALUES.items():
        for form in WRITTEN:
            text = form.format(name=name, NAME=name.upper(), value=drawn(SMALL, size))
            missed += [text] if not kinds(search(used, text)) else []
    assert len(missed) <= 0.03 * len(VALUES) * len(WRITTEN), missed


@pytest.mark.parametrize("name", vendors.UUIDS)
def test_a_uuid_counts_where_its_vendor_gives_out_uuids(used: Scanner, name: str) -> None:
    for form in WRITTEN:
        text = form.format(name=name, NAME=name.upper(), value=unique())
        assert kinds(search(used, text)) == {"credential_vendor": 1}, text


@pytest.mark.parametrize(
    "text",
    [
        f"_gitlab_session={drawn(SMALL, 32)};",
        f'<add key="Clear{"TextPassword"}" value="{drawn(SMALL, 9)}3x" />',
        f"BUNDLE_ENTERPRISE__CONTRIBSYS__COM={drawn(HEX, 8)}:{drawn(HEX, 8)}",
        f"AQE{drawn(SMALL, 78)}==-{drawn(SMALL, 43)}=",
        f"live_{drawn(SMALL, 40)}",
        f"4b1d{drawn(SMALL, 38)}",
        f"sc_{drawn(SMALL, 12)}.{drawn(SMALL, 5)}.acc-{drawn(SMALL, 16)}.{drawn(SMALL, 44)}",
        f"mailgun_signing = {drawn(HEX, 32)}-{drawn(HEX, 8)}-{drawn(HEX, 8)}",
    ],
)
def test_those_with_a_form_of_their_own_are_found_by_it(used: Scanner, text: str) -> None:
    assert kinds(search(used, text)), text


@pytest.mark.parametrize(
    "text",
    [
        f"datadog trace_id: {unique()}", f"sentry event_id={drawn(HEX, 32)}", f"heroku request id: {unique()}",
        f"okta user: {unique()}", f"  Sentry: {drawn(HEX, 40)}", f"  Intercom: {drawn(HEX, 64)}",
        f"github.com/DataDog/datadog-go v3.2.0 h1:{drawn(SMALL, 43)}=",
        f"uses: codecov/codecov-action@{drawn(HEX, 40)}",
        f'sentry-sdk = {{ version = "1.2.3", hash = "sha256:{drawn(HEX, 64)}" }}', f"gitlab commit: {drawn(HEX, 40)}",
        'okta = "SomeChannelName2024WithWords"', "twitch: somestreamer2024channelname",
        "datadog-agent: 7.50.0-rc.1.git.123.abcdef1", "zoom: 123456789012345678901234",
        "sonar.projectKey=org.example:my-project-name-long", "HEROKU_APP=the-river-and-the-weir-of-the-mill",
    ],
)  # fmt: skip
def test_ids_hashes_and_names_are_none(used: Scanner, text: str) -> None:
    assert "credential_vendor" not in kinds(search(used, text)), text


def test_every_word_is_looked_for() -> None:
    value = drawn(SMALL, 40)
    together = "|".join(vendors.PATTERNS)
    for word in vendors.WORDS:
        assert vendors.assigned(f"{word.upper()}_KEY={value}\n"), word
        assert word.replace("-", r"\-") in together
    assert set(vendors.UUIDS) <= set(vendors.WORDS)
