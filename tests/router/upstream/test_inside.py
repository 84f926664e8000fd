"""Which addresses are this site's own: serving's word alone opens none, however an address is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.upstream.address import Address
from router.upstream.inside import Inside
from serving.catalogue import ConfigError, load
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


@pytest.mark.parametrize("host", ["169.254.169.254", "100.64.0.9", "[2001::1]", "[2002:a00:1::1]", "0.0.0.0"])
def test_what_is_not_public_is_not_for_that_of_this_site(host: str) -> None:
    told = refusal(f"https://{host}", "/etc/ca.pem")
    assert "none of the networks" in told or "public address" in told


def test_a_site_that_names_its_networks_has_no_others_but_loopback() -> None:
    site = CATALOGUE.site.model_copy(update={"inside": ("100.64.0.0/10", "fd00:7::/32")})
    inside = Inside(CATALOGUE.model_copy(update={"site": site}))
    for ip in ("100.64.0.9", "fd00:7::1", "127.0.0.1", "::1"):
        assert not inside.outside(ip)
    for ip in ("10.0.0.7", "192.168.0.1", "fe80::1%eth0", "fd00:8::1", "8.8.8.8"):
        assert inside.outside(ip)
    assert "add its own to `inside:`" in inside.refusal(Address.parse("https://10.0.0.7", "/etc/ca.pem"))


@pytest.mark.parametrize("text", ["10.0.0.0/33", "10.0.0.1/8", "gpu-7.internal", ""])
def test_a_network_that_is_none_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "headgate.yaml"
    path.write_text(f"inside:\n  - {text!r}\n")
    with pytest.raises(ConfigError, match=r"headgate\.yaml:2: .*write it like 10\.0\.0\.0/8"):
        load(path)
