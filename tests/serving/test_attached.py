"""Attached servers: which addresses may count as this site's own, and names that callers can use."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.attached import AttachedServer, caller_name, provider_hosts, refusal
from serving.catalogue import Attached, Model, Provider
from serving.endpoint import Timing


@pytest.mark.parametrize(
    ("served", "name"),
    [
        ("Qwen/Qwen3.5-0.8B", "Qwen/Qwen3.5-0.8B"),
        ("/models/qwen", "models/qwen"),
        ("two words\r\nx-evil: 1", "two-words-x-evil:-1"),
        ("auto", "auto-model"),
        ("///", "model"),
        ("é", "model"),
        ("x" * 500, "x" * 120),
    ],
)
def test_a_served_name_becomes_one_that_callers_can_use(served: str, name: str) -> None:
    found = caller_name(served)
    assert found == name
    Model(name=found, place="local", lanes=("private",), context=1, output=1)


@pytest.mark.parametrize("url", ["unix:/run/my models/one two.sock", "http://localhost:8000/a?b", "https://:80"])
def test_a_server_that_has_not_answered_has_a_usable_name_too(url: str) -> None:
    """One name the router cannot use must not be published, whatever the address holds."""
    (view,) = AttachedServer(Attached(url=url), Timing(), {}, frozenset()).views()
    Model(name=view.name, place="local", lanes=("private",), context=1, output=1)


PROVIDERS = provider_hosts([
    Provider(base_url="https://API.provider.example/v1"),
    Provider(base_url="http://127.0.0.1:4000/v1"),
    Provider(base_url="https://10.0.0.9:8443"),
    Provider(base_url="https://["),
    Provider(),
])  # fmt: skip


def refused(url: str, **more: object) -> str:
    return refusal(Attached.model_validate({"url": url, **more}), PROVIDERS)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000",
        "http://127.8.9.1",
        "http://localhost:8000/v1",
        "http://[::1]:8000",
        "unix:/run/vllm.sock",
    ],
)
def test_this_machine_needs_nothing(url: str) -> None:
    assert refused(url) == ""


def test_what_is_attached_counts_as_local_so_a_public_server_cannot_be() -> None:
    """https with the system's authorities proves a name, not that the server is the site's own."""
    for url in ("https://gpu-7.internal:8000", "https://10.0.0.7", "https://anything.example/v1"):
        told = refused(url)
        assert f'attach: [{{url: "{url}", ca_file: ' in told and "\n" not in told
        assert refused(url, ca_file="/etc/ca.pem") == ""
        assert "ca_file" in refused(url, allow_cleartext=True)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host",
    ["8.8.8.8", "[2a00:1450::1]", "[::ffff:8.8.8.8]", "[2002:808:808::1]", "134744072", "0x8.8.8.8", "010.8.8.8"],
)
def test_no_setting_opens_a_public_address(scheme: str, host: str) -> None:
    told = refused(f"{scheme}://{host}:8000", ca_file="/etc/ca.pem", allow_cleartext=True)
    assert "public address" in told or "none of this site's networks" in told


@pytest.mark.parametrize(
    "url",
    [
        "https://api.provider.example", "https://API.Provider.Example:8443/v1", "http://api.provider.example.:80",
        "http://localhost:4000", "http://127.0.0.2:4000", "https://10.0.0.9",
    ],
)  # fmt: skip
def test_no_setting_makes_a_hosted_provider_local(url: str) -> None:
    assert "hosted provider" in refused(url, ca_file="/etc/ca.pem", allow_cleartext=True)


def test_clear_text_to_another_host_is_refused() -> None:
    for host in ("gpu-7.internal", "10.0.0.7", "localhost.invalid", "localhost."):
        assert "allow_cleartext" in refused(f"http://{host}:8000")
        assert refused(f"http://{host}:8000", allow_cleartext=True) == ""


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "100.64.0.1", "0.0.0.0", "[2001::1]", "[2002:a00:1::1]", "192.0.2.1"]
)
def test_what_lies_in_no_network_of_the_site_is_refused_though_it_is_not_public(host: str) -> None:
    told = refused(f"http://{host}:8000", allow_cleartext=True)
    assert "public address" in told or ("none of this site's networks" in told and "`inside:`" in told)


def test_the_networks_of_a_site_are_those_it_names_and_loopback() -> None:
    def told(url: str) -> str:
        return refusal(Attached(url=url, allow_cleartext=True), inside=("100.64.0.0/10",))

    assert told("http://100.64.0.1:8000") == told("http://127.0.0.1:8000") == ""
    assert "none of this site's networks" in told("http://10.0.0.7:8000")


@pytest.mark.parametrize(
    "url",
    ["https://user:pass@gpu-7.internal", "https://:80", "https://gpu-7.internal:99999", "https://[", "https://a%2eb",
     "https://api\u3002provider\u3002example"],
)  # fmt: skip
def test_what_is_no_plain_address_is_refused(url: str) -> None:
    assert refused(url, ca_file="/etc/ca.pem")


async def looked(**settings: str) -> tuple[str, str]:
    server = AttachedServer(Attached.model_validate(settings), Timing(), {"EMPTY": " "}, frozenset())
    await server._look()
    (view,) = server.views()
    return view.state, view.detail


async def test_what_is_named_and_not_there_is_said_with_its_name(tmp_path: Path) -> None:
    """Not "start that server first", which would send people to the wrong machine."""
    none, text = tmp_path / "none.pem", tmp_path / "text.pem"
    text.write_text("no certificate")
    assert await looked(url="https://localhost:1", ca_file=str(none)) == ("failed", f"ca_file {none} does not exist")
    state, detail = await looked(url="https://localhost:1", ca_file=str(text))
    assert state == "failed" and detail.startswith(f"ca_file {text} cannot be used: ") and "None" not in detail
    for name in ("NOT_THERE", "EMPTY"):
        state, detail = await looked(url="http://localhost:1", key_env=name)
        assert (state, detail) == ("failed", f"{name} is not set where Headgate was started")


@pytest.mark.parametrize(
    "content", [b"sk-first\n# the key of the large server\n", "sk-first".encode("utf-16"), b"sk-f\xe9", "sk-€".encode()]
)
async def test_a_key_that_cannot_be_sent_is_named_by_its_file_and_never_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    state, detail = await looked(url="http://localhost:1", key_file=str(tmp_path / "key"))
    assert state == "failed" and detail.startswith("its key cannot be read: ") and str(tmp_path / "key") in detail
    assert "sk-" not in detail


async def test_a_key_file_of_nobody_is_a_reason(tmp_path: Path) -> None:
    state, detail = await looked(url="http://localhost:1", key_file="~nosuchuser/key")
    assert state == "failed" and "None" not in detail


@pytest.mark.parametrize("url", ["https://me:pa55w@gpu:8000", "http://me:pa55w\u2100@h", "http://h:1/?key=pa55w"])
def test_what_may_be_a_password_in_an_address_is_not_published(url: str) -> None:
    """Its name is one that callers see, and its detail one that they read."""
    server = AttachedServer(Attached(url=url), Timing(), {}, frozenset())
    assert "pa55w" not in refused(url) and refused(url)
    assert "pa55w" not in repr(server.views())
