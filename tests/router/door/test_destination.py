"""Which addresses may be called."""

from __future__ import annotations

import socket

import pytest
from aiohttp.abc import ResolveResult

from router.door.destination import AddressRefused, Destination, DestinationError, VettedResolver, ranges, split, vet
from serving.catalogue import Provider

GLOBAL = ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
NOT_GLOBAL = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1",
    "ff0e::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::",
    "2002:a00:1::", "::7f00:1", "2001:db8::1", "2001:0:808:808:0:0:80ff:fffe",
]  # fmt: skip


def test_global_addresses_are_let_through_and_all_others_are_not() -> None:
    for address in GLOBAL:
        vet(address, (), cleartext=False)
    for address in NOT_GLOBAL:
        with pytest.raises(AddressRefused):
            vet(address, (), cleartext=False)


def test_a_private_range_opens_itself_also_for_mapped_addresses_and_nothing_else() -> None:
    allowed = ranges(Provider(private_ranges=("10.0.0.0/8", "fd00::/8")))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1"):
        vet(address, allowed, cleartext=True)
    for address in ("127.0.0.1", "11.0.0.1", "fe80::1"):
        with pytest.raises(AddressRefused):
            vet(address, allowed, cleartext=True)


def test_clear_http_is_refused_to_global_addresses() -> None:
    with pytest.raises(AddressRefused, match="http://"):
        vet("8.8.8.8", (), cleartext=True)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/v1", "https:///v1", "https://user:pw@a.example/v1", "https://a.example/v1?x=1",
        "https://a.example/v1#x", "https://a.example\\@b.example/v1", "https://a.example:port/v1", "https://a b/v1",
        "https://exämple.org/v1", "https://a.example/%2e%2e/v1", "https://a.example/../v1", "https://[::1/v1", "",
    ],
)  # fmt: skip
def test_a_base_address_that_could_be_read_in_two_ways_is_refused(url: str) -> None:
    with pytest.raises(DestinationError):
        split(Provider(base_url=url))


def test_clear_http_through_a_proxy_is_refused() -> None:
    with pytest.raises(DestinationError, match="proxy"):
        split(Provider(base_url="http://10.0.0.1/v1", proxy="http://10.0.0.2:3128"))


@pytest.mark.parametrize("proxy", ["", "http://10.0.0.2:3128"])
@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "[::ffff:169.254.169.254]", "[fd00::1]"])
async def test_an_address_in_place_of_a_name_is_vetted_too(host: str, proxy: str) -> None:
    with pytest.raises(DestinationError, match="private_ranges"):
        Destination(Provider(base_url=f"https://{host}/v1", proxy=proxy))


class Names:
    """A resolver that answers what the test says."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(self, host: str, port: int, family: int) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=a, port=port, family=socket.AF_INET, proto=0, flags=0)
            for a in self.addresses
        ]

    async def close(self) -> None:
        return


async def test_a_name_with_one_bad_address_is_refused_whole_and_no_other_name_is_resolved() -> None:
    resolver = VettedResolver("api.example", (), cleartext=False)
    resolver._inner = Names("8.8.8.8", "8.8.4.4")  # type: ignore[assignment]
    assert [found["host"] for found in await resolver.resolve("api.example", 443)] == ["8.8.8.8", "8.8.4.4"]
    with pytest.raises(AddressRefused):
        await resolver.resolve("other.example", 443)
    resolver._inner = Names("8.8.8.8", "169.254.169.254")  # type: ignore[assignment]
    with pytest.raises(AddressRefused):
        await resolver.resolve("api.example", 443)


async def test_the_socket_is_the_last_to_look_at_an_address() -> None:
    way = Destination(Provider(base_url="https://api.example/v1"))
    with pytest.raises(AddressRefused):
        way._socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 443)))
    await way.close()


async def test_a_wrong_range_or_authority_file_is_named() -> None:
    with pytest.raises(DestinationError, match="private_ranges"):
        Destination(Provider(base_url="https://api.example/v1", private_ranges=("10.0.0.1/8",)))
    with pytest.raises(DestinationError, match="ca_file"):
        Destination(Provider(base_url="https://api.example/v1", ca_file="/nowhere/ca.pem"))
