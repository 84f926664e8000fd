"""How serving/ speaks to servers: bounded in time and size, and only to the address given."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from serving import probe
from serving.probe import ProbeError, ServedModel, Target

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(path: Path, answer: Answer) -> AsyncIterator[Target]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            # The body too, or closing would break the pipe under a client that is still writing.
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0))
            await answer(head, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_unix_server(serve, path)
    async with listening:
        yield Target(f"unix:{path}")


def says(body: bytes, status: str = "200 OK", extra: str = "") -> Answer:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{extra}\r\n".encode() + body)
        await writer.drain()

    return answer


async def test_models_with_their_context(tmp_path: Path) -> None:
    body = b'{"data": [{"id": "a", "max_model_len": 4096}, {"id": "b"}, {"no": "id"}]}'
    async with server(tmp_path / "s", says(body)) as target:
        assert await probe.models(target) == [ServedModel("a", 4096), ServedModel("b", 0)]


async def test_the_key_is_sent_and_never_shown(tmp_path: Path) -> None:
    heads: list[bytes] = []
    key = secrets.token_hex(8)

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        await says(b'{"data": []}')(head, writer)

    async with server(tmp_path / "s", answer) as target:
        await probe.models(Target(target.url, key))
    assert f"Authorization: Bearer {key}".encode() in heads[0]
    assert key not in repr(Target(target.url, key))


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    async with server(
        tmp_path / "s", says(b"", "307 Temporary Redirect", "location: http://127.0.0.1:1/\r\n")
    ) as target:
        with pytest.raises(ProbeError, match="HTTP 307") as failed:
            await probe.models(target)
    assert failed.value.status == 307


async def test_a_server_that_drips_bytes_is_left_at_the_deadline(tmp_path: Path) -> None:
    async def drip(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x-more: 1\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with server(tmp_path / "s", drip) as target:
        began = time.monotonic()
        with pytest.raises(ProbeError, match="no answer within"):
            await probe.metrics(target, 0.2)
        assert time.monotonic() - began < 1


async def test_an_endless_body_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "METRICS_LIMIT", 1000)
    async with server(tmp_path / "s", says(b"x" * 5000)) as target:
        with pytest.raises(ProbeError, match="longer than 1000"):
            await probe.metrics(target)


@pytest.mark.parametrize("body", [b"not json", b"[]", b'{"data": 3}'])
async def test_nonsense_is_an_error(tmp_path: Path, body: bytes) -> None:
    async with server(tmp_path / "s", says(body)) as target:
        with pytest.raises(ProbeError):
            await probe.models(target)


async def test_one_token_says_what_went_wrong(tmp_path: Path) -> None:
    async with server(tmp_path / "s", says(b'{"error": {"message": "busy"}}', "503 Busy")) as target:
        assert await probe.one_token(target, "m", 1) == "HTTP 503: busy"
    assert await probe.one_token(target, "m", 1) != ""


async def test_a_pooling_model_is_asked_for_an_embedding(tmp_path: Path) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        there = head.startswith(b"POST /v1/embeddings ")
        await says(b'{"data": [1]}' if there else b"{}", "200 OK" if there else "404 Not Found")(head, writer)

    async with server(tmp_path / "s", answer) as target:
        assert await probe.one_token(target, "m", 1) == ""


async def test_proxies_of_the_environment_do_not_count_for_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = asyncio.Event()

    async def proxy(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        writer.close()

    listening = await asyncio.start_server(proxy, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(urllib.request, "_opener", None)  # made once in a process, with the proxies of that moment
        with pytest.raises(ProbeError):
            await probe.models(Target("http://127.0.0.1:1"))
        assert not reached.is_set()
        # The hub, unlike them, is reached through the user's proxy.
        assert not await probe.hub_reachable(1, {"HF_ENDPOINT": "http://hub.invalid"})
        assert reached.is_set()


async def test_offline_means_no_hub() -> None:
    assert not await probe.hub_reachable(1, {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:1"})


@pytest.mark.parametrize("url", ["http://h:1/v1", "http://h:1/v1/", "http://h:1/", "http://h:1"])
def test_an_address_may_end_in_v1(url: str) -> None:
    assert probe.address(url) == "http://h:1"


class Connected:
    """A socket, as far as it is asked who is at its other end."""

    def __init__(self, peer: str) -> None:
        self.family, self._peer = socket.AF_INET6 if ":" in peer else socket.AF_INET, peer

    def getpeername(self) -> tuple[str, int]:
        return self._peer, 8000


@pytest.mark.parametrize(
    ("peer", "own"),
    [("10.1.2.3", True), ("127.0.0.1", True), ("::1", True), ("::ffff:10.0.0.1", True), ("192.168.0.1", False),
     ("8.8.8.8", False), ("2001:4860::1", False), ("::ffff:8.8.8.8", False), ("fe80::1%eth0", False)],
)  # fmt: skip
def test_the_other_end_of_a_socket_must_lie_in_the_sites_networks(peer: str, own: bool) -> None:
    found = probe._stranger(Connected(peer), ("10.0.0.0/8",))  # type: ignore[arg-type]
    assert (found == "") is own


async def test_a_server_that_is_elsewhere_now_hears_not_a_word_of_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name was looked up again between the check and the connection."""
    heard, ended = bytearray(), asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read())
        writer.close()
        await writer.wait_closed()
        ended.set()

    stranger = probe._stranger
    monkeypatch.setattr(probe, "_stranger", lambda _, inside: stranger(Connected("8.8.8.8"), inside))  # type: ignore[arg-type]
    async with await asyncio.start_server(listen, "127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        with pytest.raises(ProbeError, match=r"led to 8\.8\.8\.8, which lies in none"):
            await probe.models(Target(url, "a-key", inside=("10.0.0.0/8",)))
        await ended.wait()
    assert heard == b""


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"data": [{"id": "\\ud800x"}]}', b'{"data": [{"id": 7}]}'])
@pytest.mark.parametrize("status", ["200 OK", "500 Oh"])
async def test_no_answer_breaks_who_asks(tmp_path: Path, body: bytes, status: str) -> None:
    async with server(tmp_path / "s", says(body, status)) as target:
        try:
            assert await probe.models(target) == []
        except ProbeError as failed:
            str(failed).encode()


@pytest.mark.parametrize("context", ["true", "1e400", "-1", "1" + "0" * 200, '"many"'])
async def test_a_context_that_cannot_be_is_unknown(tmp_path: Path, context: str) -> None:
    body = b'{"data": [{"id": "m", "max_model_len": %s}]}' % context.encode()
    async with server(tmp_path / "s", says(body)) as target:
        assert await probe.models(target) == [ServedModel("m", 0)]


async def test_what_a_server_says_of_a_key_is_told_without_it(tmp_path: Path) -> None:
    """Callers read it. In whatever part of the answer it stands, and also where it could not be sent at all."""
    key, told = f"one  two {secrets.token_hex(8)}", list[str]()

    async def nonsense(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{key} is no key\r\n\r\n".encode())
        await writer.drain()

    body = f'{{"error": {{"message": "caf\\ud83d {key} is\\n wrong"}}}}'.encode()
    for answer in (says(body, "401 No"), nonsense):
        async with server(tmp_path / secrets.token_hex(4), answer) as target:
            with pytest.raises(ProbeError) as failed:
                await probe.models(Target(target.url, key))
            told += [str(failed.value), repr(failed.value.__cause__)]
            told.append(await probe.one_token(Target(target.url, key), "m", 1))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        for unfit in (f"{key}\n# the key of the large server", f"{key}\u20ac"):
            with pytest.raises(ProbeError) as failed:
                await probe.models(Target(f"unix:{tmp_path}/s", unfit))
            told += [str(failed.value), repr(failed.value.__cause__)]
    assert "HTTP 401: caf? ... is wrong" in told
    assert key.split()[-1] not in "".join(told)
