"""A closed loop: a fixed number of connections, each asking again as soon as it has its answer.

It finds what a server can do at most. What people would feel under a given load is what load.py measures.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from benchmarks.asking import Asking, address
from benchmarks.installation import Stop
from benchmarks.samples import Sample, quantile

UNENDING_S = 3600.0


@dataclass(frozen=True, slots=True)
class Done:
    """What a closed loop did. Times in seconds."""

    requests: int
    errors: int
    seconds: float
    p50: float | None
    p99: float | None
    first_token_p50: float | None = None
    first_token_p99: float | None = None
    reached_p50: float | None = None
    """To the upstream, where it says when that was; `back_p50` from there to the first token."""
    back_p50: float | None = None


async def keep_asking(asking: Asking, connections: int, seconds: float) -> list[Sample]:
    """Ask over and over for so many seconds; requests under way at the end are finished and counted."""
    begin, found, numbers = time.monotonic(), list[Sample](), itertools.count()

    async def one(session: aiohttp.ClientSession) -> None:
        while (now := time.monotonic() - begin) < seconds:
            found.append(await asking.send(session, next(numbers), begin, now, UNENDING_S))
            if not found[-1].answered:
                await asyncio.sleep(0.1)  # a server that refuses is not to be asked a thousand times a second

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        await asyncio.gather(*(one(session) for _ in range(connections)))
    return found


async def ask_times(asking: Asking, connections: int, times: int) -> list[Sample]:
    """Ask `times` times on each connection."""
    begin, found = time.monotonic(), list[Sample]()

    async def one(session: aiohttp.ClientSession, which: int) -> None:
        for turn in range(times):
            number = which * times + turn
            found.append(await asking.send(session, number, begin, time.monotonic() - begin, UNENDING_S))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        await asyncio.gather(*(one(session, which) for which in range(connections)))
    return found


def done(samples: list[Sample]) -> Done:
    """What the samples of a closed loop say."""
    good = [s for s in samples if s.answered]
    totals, firsts = [s.total_s for s in good], [s.first_token_s for s in good if s.first_token_s is not None]
    return Done(
        requests=len(good), errors=len(samples) - len(good), seconds=max((s.ended_s for s in samples), default=0.0),
        p50=quantile(totals, 0.5), p99=quantile(totals, 0.99),
        first_token_p50=quantile(firsts, 0.5), first_token_p99=quantile(firsts, 0.99),
    )  # fmt: skip


SCRIPT = """
wrk.method = "POST"
wrk.body = %s
%s
function done(summary, latency, requests)
  local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
  io.write(string.format("RESULT %%d %%d %%d %%d %%d\\n", summary.requests, bad, summary.duration,
    latency:percentile(50), latency:percentile(99)))
end
"""
"""What wrk runs: one body for all, and the figures in one line, times in microseconds."""


def wrk_script(body: bytes, headers: Mapping[str, str]) -> str:
    # A JSON text is a Lua text too, as long as it escapes nothing but quotes and backslashes.
    lines = [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items()]
    return SCRIPT % (json.dumps(body.decode("ascii")), "\n".join(lines))


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


def wrk(asking: Asking, connections: int, seconds: float, folder: Path) -> Done:
    """The same by wrk, one thread and one body for all: it takes a tenth of the CPU. Raises Stop."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {asking.key}"}
    script = folder / "post.lua"
    script.touch(mode=0o600)
    script.write_text(wrk_script(asking.body(0), headers))
    url = f"{address(asking.url)}/v1/chat/completions"
    said = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s", str(script), url],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return read_wrk(said.stdout, said.stderr)


def read_wrk(text: str, complaint: str = "") -> Done:
    """The line that SCRIPT writes. Raises Stop where there is none."""
    line = next((line for line in text.splitlines() if line.startswith("RESULT ")), "")
    if not line:
        raise Stop(f"wrk gave no result: {(complaint or text).strip()[:300]}")
    requests, bad, took, p50, p99 = (int(word) for word in line.split()[1:])
    return Done(requests - bad, bad, took / 1e6, p50 / 1e6, p99 / 1e6)
