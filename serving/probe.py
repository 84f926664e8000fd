"""Where serving/ speaks HTTP: what a server serves, whether it answers, its metrics, and whether a hub can be reached.

To servers it speaks directly: no proxies, no redirects, bounded bodies, a deadline on the whole exchange.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ipaddress
import json
import os
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 3.0
SMALL = 1024 * 1024
MOST_CONTEXT = 10**12
"""No model reads so many tokens; more is a fault of the one who says it."""
METRICS_LIMIT = 16 * 1024 * 1024
HUB = "https://huggingface.co"

PROMPT = "Some mornings there is fog over the meadow, and the keeper waits for the sun before he opens the gate again."
"""Asked for one token. A whole sentence, since vLLM's CPU build dies of an illegal instruction where the very first
prompt it sees is a single token: its attention uses AMX, for which only a larger matrix product asks the kernel."""


class ProbeError(Exception):
    """The server did not answer as it should; the text says how, in a few words."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status, where there was one."""


class TooLate(ProbeError):
    """It gave no answer in time, or not all of it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server to speak to: `unix:/path`, `http://host:port` or `https://host:port`, with or without a final /v1."""

    url: str
    key: str = field(default="", repr=False)
    ca_file: str = ""
    """A certificate authority to trust instead of the system's."""
    inside: Sequence[str] | None = None
    """The networks (CIDR) its name may lead to, besides loopback; None where nobody asks."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as the server lists it. `context` in tokens, 0 where it does not say."""

    name: str
    context: int


async def models(target: Target, timeout_s: float = TIMEOUT_S) -> list[ServedModel]:
    """What the server serves. Raises ProbeError."""
    found = _parsed(await _exchange(target, "GET", "/v1/models", None, timeout_s, SMALL))
    entries = found.get("data") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise ProbeError("its /v1/models is no list of models")
    return [_served(entry) for entry in entries if isinstance(entry, dict) and _is_text(entry.get("id"))]


async def one_token(target: Target, model: str, timeout_s: float) -> str:
    """Have the model work once, as little as can be: "" where it answered, else what went wrong."""
    try:
        body = {"model": model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
        answer = _parsed(await _exchange(target, "POST", "/v1/completions", body, timeout_s, SMALL))
        return "" if isinstance(answer, dict) and answer.get("choices") else "its completion has no choices"
    except ProbeError as failed:
        if failed.status not in (400, 404, 405, 501):
            return str(failed)
        first = str(failed)
    try:
        # A pooling model completes nothing; it makes embeddings.
        embedding = {"model": model, "input": PROMPT}
        answer = _parsed(await _exchange(target, "POST", "/v1/embeddings", embedding, timeout_s, SMALL))
        return "" if isinstance(answer, dict) and answer.get("data") else "its embedding is empty"
    except ProbeError:
        return first


async def put_to_sleep(target: Target, timeout_s: float) -> None:
    """Have a vLLM in sleep mode move its weights to main memory and give its GPU memory back. Raises ProbeError.

    What it still works on is finished first, and what comes after this hangs until it wakes: nobody may send there.
    """
    await _exchange(target, "POST", "/sleep?level=1&mode=wait", {}, timeout_s, SMALL)
    if await _is_sleeping(target) is not True:
        raise ProbeError("it says that it does not sleep")


async def wake(target: Target, model: str, timeout_s: float) -> str:
    """Wake it, and have it make a token: "" where it did, else what went wrong."""
    try:
        await _exchange(target, "POST", "/wake_up", {}, timeout_s, SMALL)
        if await _is_sleeping(target) is not False:
            return "it does not say that it is awake"
    except ProbeError as failed:
        return str(failed)
    return await one_token(target, model, timeout_s)


async def _is_sleeping(target: Target) -> Any:
    found = _parsed(await _exchange(target, "GET", "/is_sleeping", None, TIMEOUT_S, SMALL))
    return found.get("is_sleeping") if isinstance(found, dict) else None


async def metrics(target: Target, timeout_s: float = TIMEOUT_S, path: str = "/metrics") -> str:
    """The text of a page of metrics. Raises ProbeError."""
    return (await _exchange(target, "GET", path, None, timeout_s, METRICS_LIMIT)).decode(errors="replace")


async def hub_reachable(timeout_s: float = 3, environ: Mapping[str, str] | None = None) -> bool:
    """Whether the model hub answers, through the user's proxies. False where HF_HUB_OFFLINE is set."""
    env = os.environ if environ is None else environ
    if env.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "on", "yes", "true"):
        return False
    endpoint = env.get("HF_ENDPOINT") or HUB
    try:
        async with asyncio.timeout(timeout_s + 1):
            return await asyncio.to_thread(_hub_answers, endpoint, timeout_s)
    except TimeoutError:
        return False


def address(url: str) -> str:
    """The address as it is published: without a final slash or /v1, which every path brings along."""
    plain = url.rstrip("/")
    return plain.removesuffix("/v1").rstrip("/")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


async def _exchange(
    target: Target, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float, limit: int
) -> bytes:
    """One request on a connection of its own; the body of a 200. Raises ProbeError."""
    try:
        connection, prefix = _connection(target, timeout_s)
    except (OSError, ValueError) as broken:
        raise ProbeError(f"its address cannot be used: {broken}") from broken
    work = asyncio.to_thread(_blocking, connection, target, method, prefix + path, body, limit)
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        raise TooLate(f"no answer within {timeout_s:g} s") from None
    except (OSError, http.client.HTTPException, ValueError) as broken:
        # `from None`: the error of http.client holds what was to be sent, and so the key.
        raise ProbeError(_without(target.key, _plain(broken))) from None
    finally:
        _abort(connection)


def _connection(target: Target, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
    base = address(target.url)
    if base.startswith("unix:"):
        return _UnixConnection(base.removeprefix("unix:"), timeout_s), ""
    parts = urllib.parse.urlsplit(base)
    if not parts.hostname:
        raise ValueError(f"{target.url!r} names no host")
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=target.ca_file or None)
        return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout_s, context=context), parts.path
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s), parts.path


def _blocking(
    connection: http.client.HTTPConnection,
    target: Target,
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    limit: int,
) -> bytes:
    headers = {"Accept": "*/*", "Connection": "close"}
    if target.key:
        headers["Authorization"] = f"Bearer {target.key}"
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        connection.connect()
        if target.inside is not None and (stranger := _stranger(connection.sock, target.inside)):
            raise ProbeError(f"its address led to {stranger}, which lies in none of this site's networks")
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read(limit + 1)
    finally:
        connection.close()
    if response.status != 200:
        raise ProbeError(_without(target.key, _refusal(response.status, content)), response.status)
    if len(content) > limit:
        raise ProbeError(f"its answer is longer than {limit} bytes")
    return content


def _stranger(connected: socket.socket, inside: Sequence[str]) -> str:
    """The address at the other end, where it is none of the site's; asked of the socket, before a word is sent."""
    if connected.family == socket.AF_UNIX:
        return ""
    peer = ipaddress.ip_address(str(connected.getpeername()[0]).partition("%")[0])
    mapped = peer.ipv4_mapped if isinstance(peer, ipaddress.IPv6Address) else None
    own = any((mapped or peer) in ipaddress.ip_network(one) for one in ("127.0.0.0/8", "::1/128", *inside))
    return "" if own else str(peer)


def _abort(connection: http.client.HTTPConnection) -> None:
    """Wake a thread that still waits on this connection; it then ends with an error nobody reads."""
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise ProbeError("its answer is not JSON") from None


def _is_text(found: object) -> bool:
    """Whether it can be published: half a character (a lone surrogate) makes no UTF-8."""
    return isinstance(found, str) and found == _whole(found)


def _whole(text: str) -> str:
    return text.encode(errors="replace").decode()


def _served(entry: dict[str, Any]) -> ServedModel:
    context = entry.get("max_model_len")
    known = context if isinstance(context, int) and not isinstance(context, bool) else 0
    return ServedModel(entry["id"], known if 0 < known < MOST_CONTEXT else 0)


def _refusal(status: int, content: bytes) -> str:
    """The status with the first words of the server's own message, where it gave one."""
    message: Any = ""
    try:
        found = json.loads(content)
        error = found.get("error", found) if isinstance(found, dict) else {}
        message = error.get("message", "") if isinstance(error, dict) else ""
    except (ValueError, RecursionError):
        pass
    words = " ".join(_whole(str(message)).split())
    return f"HTTP {status}: {words}" if words else f"HTTP {status}"


def _without(key: str, told: str) -> str:
    """What a server, or the error of asking it, says: never the key it was shown, for callers read this."""
    for shown in {key, " ".join(key.split())} - {""}:
        told = told.replace(shown, "...")
    return told[:220]


def _plain(broken: Exception) -> str:
    if isinstance(broken, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {broken.verify_message}"
    if isinstance(broken, FileNotFoundError):
        return "its socket is not there"
    if isinstance(broken, ConnectionRefusedError):
        return "connection refused"
    if isinstance(broken, OSError) and broken.strerror:
        return broken.strerror.lower()
    if isinstance(broken, ValueError) and not isinstance(broken, http.client.HTTPException):
        return "it cannot be asked so, or its answer cannot be read"  # the error itself may hold what was to be sent
    return str(broken) or type(broken).__name__


def _hub_answers(endpoint: str, timeout_s: float) -> bool:
    if not endpoint.startswith(("http://", "https://")):
        return False
    try:
        request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 the scheme is checked above
        with urllib.request.urlopen(request, timeout=timeout_s):  # noqa: S310
            return True
    except urllib.error.HTTPError as answer:
        answer.close()
        # A company's proxy says 403 or 407 for a hub it does not let through.
        return answer.code < 500 and answer.code not in (403, 407)
    except (OSError, ValueError, http.client.HTTPException):
        return False
