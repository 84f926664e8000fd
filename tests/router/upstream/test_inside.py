"""Which addresses are this site's own: serving's word alone opens none, however an address is written."""

from __future__ import annotations

import pytest

from router.upstream.address import Address
from router.upstream.inside import Inside
from tests.fakes.serving import CATALOGUE


def refusal(address: str, ca_file: str = "") -> str:
    return Inside(CATALOGUE).refusal(Address.parse(address, ca_file))


@pytest.mark.parametrize(
    ("address", "ca_file"),
    [
        ("unix:/run/engine.sock", ""), ("http://127.0.0.1:8000", ""), ("http://localhost:8000", ""),
        ("http://[::1]:8000", ""), ("http://gpu-7.internal:8000", ""), ("https://gpu-9.internal:8000", "/etc/ca.pem"),
        ("https://10.0.0.9", "/etc/ca.pem"),
    ],
)  # fmt: skip
def test_what_is_this_sites_own_is_reached(address: str, ca_file: str) -> None:
    assert refusal(address, ca_file) == ""


@pytest.mark.parametrize(
    ("address", "ca_file", "words"),
    [
        ("https://gpu-9.internal:8000", "", "attach[].ca_file"),
        ("https://anything.example", "", "attach[].ca_file"),
        ("http://gpu-8.internal:8000", "/etc/ca.pem", "allow_cleartext"),
        ("http://gpu-7.internal:8001", "", "allow_cleartext"),
        ("http://10.0.0.7:8000", "", "allow_cleartext"),
        ("http://localhost.invalid:8000", "", "allow_cleartext"),
        ("http://8.8.8.8:8000", "", "public address"),
        ("https://8.8.8.8", "/etc/ca.pem", "public address"),
        ("https://[::ffff:8.8.8.8]", "/etc/ca.pem", "public address"),
        ("https://134744072", "/etc/ca.pem", "public address"),
        ("https://api.provider.example", "/etc/ca.pem", "hosted provider"),
        ("https://API.provider.example.:444", "/etc/ca.pem", "hosted provider"),
        ("http://localhost:4000", "", "hosted provider"),
    ],
)
def test_servings_word_alone_opens_no_address(address: str, ca_file: str, words: str) -> None:
    """Serving refuses these too; this holds where its own check is wrong or gone."""
    assert words in refusal(address, ca_file)
