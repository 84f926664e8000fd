"""One process that another keeps running: how it starts, shows that it goes on, and is ended.

It shows that by beats: it writes a byte each second, from the loop that does its work, and whoever keeps it counts what
is missing. A process whose loop stands still is alive to the kernel, which goes on giving it connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

BEAT_S = 1.0
SILENT_S = 10.0
"""Without a beat for so long a process stands still, and is ended."""
TURNS = 10
"""Silence is counted in turns of the keeper's own loop, so that a pause of the whole machine is one turn and no end."""
STILL_GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL for one that stands still: most will not hear the first."""


@contextlib.asynccontextmanager
async def beating(file: int) -> AsyncIterator[None]:
    """Write beats to `file` inside `with`; none where it is -1, for then nobody listens."""
    task = asyncio.create_task(_beat(file)) if file >= 0 else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()


async def _beat(file: int) -> None:
    while True:
        with contextlib.suppress(OSError):  # nobody reads, or nobody is there any more: that is told in other ways
            os.write(file, b".")
        await asyncio.sleep(BEAT_S)


class Beats:
    """A pipe for beats, as the keeper sees it."""

    def __init__(self) -> None:
        self._ours, self.theirs = os.pipe()
        for end in (self._ours, self.theirs):
            os.set_blocking(end, False)

    async def missed(self, seconds: float) -> None:
        """Return once there was none for so long. It counts from the first one on: a start takes its time."""
        begun, silent = False, 0
        while silent < TURNS:
            await asyncio.sleep(seconds / TURNS)
            if self._heard():
                begun, silent = True, 0
            elif begun:
                silent += 1

    def _heard(self) -> bool:
        try:
            os.read(self._ours, 4096)
        except BlockingIOError:
            return False
        return True  # also where it has closed its end: then nothing can be said of it

    def close(self) -> None:
        os.close(self._ours)


class Child:
    """A process, what gives the last line it wrote, and its beats where it writes any."""

    def __init__(self, process: asyncio.subprocess.Process, words: Callable[[], str], beats: Beats | None) -> None:
        self._process, self.words, self._beats = process, words, beats
        self.stood_still = False
        """Whether it was ended since it went on no more."""

    async def ended(self, silent_s: float) -> int:
        """Wait for its end, and bring that about where it stands still. Returns its exit code."""
        if self._beats is None:
            return await self._process.wait()
        watching = asyncio.create_task(self._watch(self._beats, silent_s))
        try:
            return await self._process.wait()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            self._beats.close()

    async def _watch(self, beats: Beats, silent_s: float) -> None:
        await beats.missed(silent_s)
        self.stood_still = True
        await self.end(STILL_GRACE_S)

    async def end(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL where it is still there after `grace_s`."""
        try:
            self._process.terminate()
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except ProcessLookupError:
            return
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


async def start(
    args: Sequence[str], environment: Mapping[str, str], words: Callable[[], str], *, beats: bool, **more: Any
) -> Child:  # fmt: skip
    """Start it in a session of its own, with a pipe as stdin that ends with its keeper. Raises OSError.

    With `beats` it is told by `--beat=N` where to write them. `more` goes to the start of a process as it is.
    """
    with contextlib.ExitStack() as stack:
        heard = stack.enter_context(contextlib.closing(Beats())) if beats else None
        theirs = [heard.theirs] if heard else []
        try:
            process = await asyncio.create_subprocess_exec(
                *args, *(f"--beat={file}" for file in theirs), stdin=asyncio.subprocess.PIPE, env=environment,
                start_new_session=True, pass_fds=theirs, **more,
            )  # fmt: skip
        finally:
            for file in theirs:
                os.close(file)
        stack.pop_all()
        return Child(process, words, heard)
