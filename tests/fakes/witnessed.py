"""A program: a real door in a network namespace of its own sends over TLS, and the kernel counts what leaves.

`python -m tests.fakes.witnessed HOME BYTES [SMUGGLED]`, in a namespace without anything else. This process is the
provider, on the other end of the door's only wire, and the router: it writes the ledger and seals the permits.
SMUGGLED bytes are sent out of the door's namespace past the door.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import secrets
import ssl
import subprocess
import sys
import time
from pathlib import Path

import aiohttp

from router.audit.kernel import EDGE_S
from router.ledger import bodies
from router.ledger.keys import KeyBook
from router.ledger.store import Event, Store
from router.permit import LIFETIME_S, Permit, body_hash, seal
from router.records import Attempt, Outcome
from serving import catalogue
from serving.catalogue import DataClass
from serving.home import Home
from serving.site import KeyDefaults
from tests.fakes import rules
from tests.leaks import network

ANSWER = json.dumps({"id": "a", "choices": [{"message": {"content": "x" * 2000}}]}).encode()
SITE = """
models:
  big: {{place: hosted, lanes: [frontier], context: 100000, output: 100, provider: far, provider_model: b}}
providers:
  far: {{enabled: true, base_url: "https://{host}:{port}/v1", key_env: FAR_KEY, ca_file: "{ca}",
        private_ranges: ["{host}/32"]}}
"""


def certificate(folder: Path) -> Path:
    """One for this end of the wire, with its key, in one file."""
    pem = folder / "provider.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    make += ["-subj", "/CN=x", "-addext", f"subjectAltName=IP:{network.HERE}", "-keyout", str(pem), "-out", str(pem)]
    subprocess.run(make, check=True, capture_output=True)
    return pem


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The provider: one answer for each whole request of a connection."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = next((int(x[15:]) for x in head.split(b"\r\n") if x.startswith(b"content-length:")), None)
            if length is None:
                while await reader.readuntil(b"\r\n") != b"0\r\n":  # by chunks
                    pass
                await reader.readuntil(b"\r\n")
            else:
                await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
            writer.write(f"content-length: {len(ANSWER)}\r\n\r\n".encode() + ANSWER)
    writer.close()


async def started(home: Home, config: Path) -> asyncio.subprocess.Process:
    """The door, alone in its namespace, with a wire to here."""
    environment = network.environment(HEADGATE_HOME=str(home.root), FAR_KEY="k" * 40)
    command = ["unshare", "--net", sys.executable, "-m", "router.door", "--config", str(config)]
    door = await asyncio.create_subprocess_exec(*command, env=environment)
    while Path(f"/proc/{door.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
        await asyncio.sleep(0.01)
    network.joined(door.pid)
    return door


class Router:
    """What writes the ledger and asks the door."""

    def __init__(self, home: Home, version: str) -> None:
        self.home, self.version = home, version
        with contextlib.closing(KeyBook(home.ledger, home.secret("pepper"))) as book:
            self.key = book.create("red", DataClass.public, KeyDefaults())[0].id
        self.store = Store(home.ledger)

    async def post(self, client: aiohttp.ClientSession, door: str, size: int) -> None:
        """One request of about so many bytes."""
        body = {"model": "big", "messages": [{"role": "user", "content": "word " * (size // 5)}]}
        raw, request = json.dumps(body).encode(), f"req_{secrets.token_hex(8)}"
        permit = Permit(
            id=secrets.token_hex(16), door=door, request=request, key=self.key, team="red", route="chat/completions",
            provider="far", model="big", path="chat/completions", data_class="public", body=body_hash(raw),
            policy=self.version, expires=time.time() + LIFETIME_S,
        )  # fmt: skip
        claims = {
            "permit": permit.id, "door": door, "team": "red", "provider": "far", "model": "big", "bytes": len(raw),
            "path": permit.path, "data_class": "public", "policy": self.version, "sha256": permit.body,
            "lane": "frontier", "trigger": "",
        }  # fmt: skip
        self.store.append(Event(time.time(), "opened", request, self.key, {}))
        self.store.append(Event(time.time(), "sending", request, self.key, claims))
        self.store.flush()
        token = seal(permit, self.home.secret("permit"))
        async with client.post("/send", data=io.BytesIO(raw), headers={"x-headgate-permit": token}) as reply:
            assert reply.status == 200, await reply.read()
            await reply.read()
        tried = Attempt("big", "big", "hosted", "answered", 200, 1.0, permit=permit.id)
        ended = bodies.closed(None, Outcome("answered", 200, (tried,)))
        self.store.append(Event(time.time(), "closed", request, self.key, ended))


async def apart(file: Path, kind: str, count: int = 1) -> None:
    """Wait until so many entries of a kind stand there, and until what comes now is no longer close to the last one:
    what is close to a sample proves nothing."""
    ended: list[float] = []
    while len(ended) < count or time.time() <= max(ended) + EDGE_S:
        await asyncio.sleep(0.01)
        entries = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        ended = [entry["at"] for entry in entries if entry["kind"] == kind]


async def main(root: Path, size: int, smuggled: int, piece: int) -> None:
    """Ten requests, one after the other, with a moment before and after."""
    home = Home(root, root / "engines")
    home.make()
    rules.lay_out(home)
    pem = certificate(root)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pem)
    network.ip("link", "set", "lo", "up")
    server = await asyncio.start_server(answer, "0.0.0.0", 0, ssl=made)
    plain = await asyncio.start_server(lambda r, w: r.read(), "0.0.0.0", 0)
    port, open_port = (each.sockets[0].getsockname()[1] for each in (server, plain))
    config = root / "headgate.yaml"
    config.write_text(SITE.format(host=network.HERE, port=port, ca=pem))
    router = Router(home, catalogue.load(config).version)
    door = await started(home, config)
    connector = aiohttp.UnixConnector(str(home.socket("door")))
    async with aiohttp.ClientSession("http://door", connector=connector) as client:
        state = {"open": False}
        while not state["open"]:
            with contextlib.suppress(aiohttp.ClientConnectionError, FileNotFoundError):
                state = await (await client.get("/door")).json()
            await asyncio.sleep(0.05)
        await apart(home.book.with_name("kernel.jsonl"), "sample")
        for _ in range(10):
            await router.post(client, state["instance"], size)
        if smuggled:
            program = f"import socket as s; s.create_connection(('{network.HERE}', {open_port}))"
            program += f".sendall(b'x' * {smuggled})"
            if piece:  # each in a datagram of its own
                program = "import socket as s; u = s.socket(s.AF_INET, s.SOCK_DGRAM)\n"
                program += f"for _ in range({smuggled // piece}): u.sendto(b'x' * {piece}, ('{network.HERE}', 9))"
            inside = ["nsenter", f"--net=/proc/{door.pid}/ns/net", sys.executable, "-c", program]
            await (await asyncio.create_subprocess_exec(*inside)).wait()
        await apart(home.book, "ended", 10)
    door.terminate()
    await door.wait()
    router.store.close()


if __name__ == "__main__":
    os.umask(0o077)
    size, smuggled, piece = map(int, [*sys.argv[2:], "0", "0"][:3])
    asyncio.run(main(Path(sys.argv[1]), size, smuggled, piece))
