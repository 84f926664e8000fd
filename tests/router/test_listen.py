"""Where the router may answer, and what is refused before anything starts."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router import listen
from router.listen import Listen, bound, certificate_names, check_free, check_public, shared, url
from serving.catalogue import ConfigError
from tests.conftest import free_port


def certificate(folder: Path, name: str, *, names: str = "DNS:gate.example,IP:127.0.0.1") -> Listen:
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(cert)]
    command += ["-days", "2"]
    subprocess.run(command, check=True, capture_output=True)
    return Listen(port=8443, tls_cert=str(cert), tls_key=str(key))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_may_be_in_clear(host: str) -> None:
    check_public(Listen(host), behind_proxy=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.7", "localhost.example", "127.0.0.1.example"])
def test_everything_else_may_not(host: str) -> None:
    with pytest.raises(ConfigError, match="in clear"):
        check_public(Listen(host), behind_proxy=False)
    check_public(Listen(host), behind_proxy=True)


def test_a_certificate_lets_other_machines_in(tmp_path: Path) -> None:
    made = certificate(tmp_path, "a")
    check_public(Listen("0.0.0.0", 8443, made.tls_cert, made.tls_key), behind_proxy=False)


def test_a_key_of_another_certificate_is_found_before_the_start(tmp_path: Path) -> None:
    one, other = certificate(tmp_path, "one"), certificate(tmp_path, "other")
    with pytest.raises(ConfigError, match="its own key"):
        check_public(Listen(tls_cert=one.tls_cert, tls_key=other.tls_key), behind_proxy=False)


def test_a_key_with_a_password_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    made = certificate(tmp_path, "a")
    locked = tmp_path / "locked.key"
    command = ["openssl", "pkey", "-in", str(made.tls_key), "-aes256", "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(ConfigError, match="without a password"):
        check_public(Listen(tls_cert=made.tls_cert, tls_key=str(locked)), behind_proxy=False)


def test_the_endpoint_is_named_as_the_certificate_is(tmp_path: Path) -> None:
    made = certificate(tmp_path, "a", names="DNS:*.example,DNS:gate.example,IP:::1")
    assert certificate_names(str(made.tls_cert), str(made.tls_key)) == ["*.example", "gate.example", "::1"]
    assert url(Listen("0.0.0.0", 8443, made.tls_cert, made.tls_key)) == "https://gate.example:8443"
    assert url(Listen("::", 8443, made.tls_cert, made.tls_key)) == "https://[::1]:8443"
    both = certificate(tmp_path, "b")
    assert url(Listen("0.0.0.0", 8443, both.tls_cert, both.tls_key)) == "https://127.0.0.1:8443"


def test_the_endpoint_in_clear() -> None:
    assert url(Listen()) == "http://127.0.0.1:8080"
    assert url(Listen("0.0.0.0", 80)) == "http://127.0.0.1:80"
    assert url(Listen("::1", 80)) == "http://[::1]:80"
    assert url(Listen("localhost", 80)) == "http://localhost:80"


def test_a_port_in_use_is_named_with_the_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} .*in use.* choose another port with --port"):
            check_free(Listen(port=port))
    check_free(Listen(port=port))


NOBODYS = "2001:db8::1"
"""An address of the documentation: no machine has it."""


def named(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """`localhost` stands for these."""

    def found(_: str, port: int, **__: Any) -> list[Any]:
        families = [socket.AF_INET6 if ":" in one else socket.AF_INET for one in addresses]
        return [(family, 1, 6, "", (one, port)) for family, one in zip(families, addresses, strict=True)]

    monkeypatch.setattr(listen.socket, "getaddrinfo", found)


@pytest.mark.parametrize("open_", [bound, shared])
def test_of_a_name_what_this_machine_has_is_bound_and_the_rest_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, open_: Callable[[Listen], list[socket.socket]]
) -> None:
    """`localhost` is ::1 too by many an /etc/hosts, also where the kernel has no IPv6."""
    named(monkeypatch, NOBODYS, "127.0.0.1")
    at = Listen("localhost", free_port())
    check_free(at)
    assert not caplog.messages
    (made,) = open_(at)
    with made:
        assert made.getsockname() == ("127.0.0.1", at.port)
    assert caplog.messages == [f"localhost: answers at 127.0.0.1, not at {NOBODYS}: not an address of this machine"]


def test_a_name_of_which_this_machine_has_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, NOBODYS)
    with pytest.raises(ConfigError, match="choose an address of this machine with --host"):
        check_free(Listen("localhost", free_port()))
    with pytest.raises(OSError):
        bound(Listen("localhost", free_port()))


def test_a_port_that_is_taken_at_one_of_its_addresses_is_no_half_start(monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, "127.0.0.2", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = Listen("localhost", taken.getsockname()[1])
        with pytest.raises(ConfigError, match="choose another port"):
            check_free(at)
        with pytest.raises(OSError, match="in use"):
            bound(at)
    with socket.create_server(("127.0.0.2", at.port)):  # nothing of the half that could be had was kept
        pass


@pytest.mark.reaches("no such host")
def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ConfigError, match="choose an address of this machine with --host"):
        check_free(Listen("192.0.2.1", free_port()))
    with pytest.raises(ConfigError, match="--host"):
        check_free(Listen("no such host", free_port()))
