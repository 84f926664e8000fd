"""Reads an event stream on its way through, for what accounting needs: usage, first delta, end, error.

Pure. The bytes pass unchanged, and only the few events that can say something new are decoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

from router.records import Route, Usage
from router.upstream.events import CHAT, dialect_of
from router.upstream.events import usage_of as usage_of

_BOM = b"\xef\xbb\xbf"
# A line end, then an empty line. The first must not take the CR of a CRLF alone, or every CRLF would look like two.
_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_EMPTY_LINES = re.compile(rb"[\r\n]+")
_TEXT = re.compile(rb'"(?:content|text|reasoning|reasoning_content)": ?"([^"]+)"')
_WORDS = frozenset({b"error", b"usage", b"finish_reason", b""})
"""Texts which in their quotes would have an event decoded; and none, where what stands around it may overlap."""
LESSONS = 8
"""How often it is learned what the events of one stream have in common; there are some that have nothing."""


class StreamError(Exception):
    """The stream cannot be passed on: an event without end, or one that is not JSON. The text is one sentence."""

    def __init__(self, text: str, code: str = "upstream_interrupted") -> None:
        super().__init__(text)
        self.code = code
        """The code of the error that the caller is told."""


class StreamReader:
    """Follows one stream. What it found is in its attributes, at any time."""

    def __init__(
        self, route: Route = "chat/completions", *, hide_usage: bool = False, event_bytes: int = 4 * 1024 * 1024
    ) -> None:
        self.usage = Usage()
        """From the last event that carried one."""
        self.started = False
        """A delta of content, reasoning or tool call has been seen: from here on there is no fallback."""
        self.done = False
        self.finish = ""
        """Why the answer ended, in the upstream's word; a stream that is done without one lacks its end."""
        self.replaced = False
        """Whether bytes came that are no UTF-8, and U+FFFD was passed on in their place."""
        self.error: str | None = None
        """The message of an error event. Neither it nor what follows is passed on: its words are the upstream's."""
        self.full = False
        """Whether that error says that the upstream takes no more now. vLLM refuses a stream so, with status 200."""
        self.wrong = False
        """Whether it says that the request itself is wrong."""
        self.events = 0
        """Pieces of the answer since the first delta; about one token each."""
        self._dialect = dialect_of(route)
        self._notable, self._tokens = self._dialect.notable, self._dialect.tokens
        self._hide_usage = hide_usage
        self._limit = event_bytes
        self._tail = bytearray()
        self._fault: StreamError | None = None
        self._kept = True  # the last event was passed on
        self._after_cr = False  # the last event ended on a CR, whose LF may still come
        self._first = True
        self._around: tuple[bytes, bytes] | None = None
        """What stood before and after the text of an event that was passed on without being decoded."""
        self._alike: tuple[bytes, bytes] | None = None
        """The same while the next byte begins an event, which may then be known by it."""
        self._lessons = LESSONS if self._dialect is CHAT else 0

    def feed(self, data: bytes) -> bytes:
        """Take what arrived; returns the complete events to pass on, byte for byte as they came (but see `replaced`).

        Raises StreamError, if need be at the call after the one that returns the last good event.
        """
        if self._alike is not None:
            before, after = self._alike
            if data.startswith(before) and data.endswith(after) and _plain(data[len(before) : -len(after)]):
                self.events += 1
                return data
        if not data:
            return b""
        self._alike, late = None, b""  # the LF of a CRLF whose CR ended the last event
        if self._after_cr:
            self._after_cr = False
            if data[:1] == b"\n":
                late, data = b"\n" if self._kept else b"", data[1:]
        if self._fault is not None:
            raise self._fault
        if self._over:
            return late
        relay = late + self._inspect(self._complete(data))
        if self._over:
            self._tail.clear()
        elif len(self._tail) > self._limit:
            self._fault = StreamError(f"an event is larger than {self._limit} bytes")
        if self._fault is not None and not relay:
            raise self._fault
        return relay

    def end(self) -> bytes:
        """The stream is over: a last event that lacks its empty line, and is given it. Raises StreamError."""
        if self._fault is not None:
            raise self._fault
        tail = self._mended(bytes(self._tail))
        self._tail.clear()
        if self._over or not tail.strip(b"\r\n"):
            return b"" if self._over else tail
        if _payload(tail) is None:  # half a comment would swallow what is sent after it
            return b""
        kept = self._event(tail, decode=True)
        if self._fault is not None:
            raise StreamError("the stream ended inside an event")
        return tail + (b"\n" if tail.endswith((b"\n", b"\r")) else b"\n\n") if kept else b""

    @property
    def _over(self) -> bool:
        return self.done or self.error is not None

    def _complete(self, data: bytes) -> bytes:
        """All complete events there are now; the rest is kept back."""
        tail = self._tail
        if not tail and data.endswith((b"\n\n", b"\n\r\n")):  # the usual case: whole events, nothing to copy
            return data
        seen = len(tail)
        tail += data
        end = _last_end(tail, max(0, seen - 1))
        if not end and tail.startswith((b"\n", b"\r")):  # where an event would begin, one line end is an empty line
            end = 2 if tail.startswith(b"\r\n") else 1
        ready = bytes(memoryview(tail)[:end])
        del tail[:end]
        return ready

    def _inspect(self, ready: bytes) -> bytes:
        """What of these complete events is passed on."""
        if not ready:
            return b""
        self._after_cr, self._kept = ready.endswith(b"\r") and not self._tail, True
        if not ready.isascii():
            ready = self._mended(ready)
        if self.started and _whole_objects(ready) and not self._notable(ready):
            self.events += self._tokens(ready)
            if not self._tail:
                self._alike = self._learn(ready)
            return ready
        kept, seen = [], 0
        for event in _split(ready):
            seen += len(event)
            self._kept = self._event(event, decode=False)
            if self._kept:
                kept.append(event)
            if self._over or self._fault is not None:
                break
        self._after_cr = self._after_cr and seen == len(ready)
        return b"".join(kept)

    def _learn(self, event: bytes) -> tuple[bytes, bytes] | None:
        """What the next event may have in common with this one. Some streams have nothing, and are soon left alone."""
        around = self._around
        if around is not None and event.startswith(around[0]) and event.endswith(around[1]):
            return around
        if self._lessons and event.startswith(b"data: {") and event.find(b"\n") == len(event) - 2:
            self._lessons -= 1
            if text := _TEXT.search(event):
                self._around = event[: text.start(1)], event[text.end(1) :]
        return self._around

    def _event(self, event: bytes, *, decode: bool) -> bool:
        """Take note of one event. False: it is not passed on."""
        if self._first:
            self._first = False
            event = event.removeprefix(_BOM)
        payload = _payload(event)
        if not payload:  # comments, event names, ids, keep-alives
            if payload is None and self.started:  # one without data, among others, counts by its words: so it does here
                self.events += self._tokens(event)
            return True
        if self.started and not decode and _is_object(payload) and not self._notable(event):
            self.events += self._tokens(event)
            return True
        if payload.strip() == b"[DONE]":
            # In a dialect with an end of its own a client would take this for one.
            self.done = self._dialect.closed_by_done
            return self.done
        found = _decode(payload)
        if found is None and payload.strip() != b"null":
            self._fault = StreamError("an event is not valid JSON", code="upstream_bad_event")
            return False
        if not isinstance(found, dict):
            return True
        return self._found(event, found)

    def _found(self, event: bytes, found: dict[str, Any]) -> bool:
        seen = self._dialect.seen(found, self.usage)
        self.usage = seen.usage or self.usage
        self.finish = seen.finish or self.finish
        if seen.error is not None:
            self.error, self.full, self.wrong = seen.error, seen.full, seen.wrong
            return False
        self.done = seen.done
        if seen.bare:
            return not self._hide_usage
        self.started = self.started or seen.delta
        if self.started:
            self.events += self._tokens(event)
        return True

    def _mended(self, data: bytes) -> bytes:
        """Whole events as UTF-8: what is none is replaced, for a client would stop at it."""
        try:
            data.decode()
        except UnicodeDecodeError:
            self.replaced = True
            return data.decode("utf-8", "replace").encode()
        return data


def _last_end(data: bytearray, start: int) -> int:
    """The position after the last empty line; 0 where there is none. `start`: nothing ends before it."""
    end = 0
    for pair in (b"\n\n", b"\n\r", b"\r\r"):
        end = max(end, data.rfind(pair, start) + 2)
    if end < 2:
        return 0
    return end + 1 if data[end - 1 : end + 1] == b"\r\n" else end


def _whole_objects(events: bytes) -> bool:
    """Whether each of these events looks like one JSON object, as far as that costs next to nothing.

    It says so only where a look at each event would: every event is one line of data, which begins and ends an object,
    behind its name or not. What is written in another way is looked at event by event.
    """
    ends = events.count(b"\n\n")
    objects = events.count(b"\ndata: {") + events.startswith(b"data: {")
    names = events.count(b"\n\nevent: ") + events.startswith(b"event: ")
    lines = events.count(b"\n") == 2 * ends + names and b"\r" not in events
    return lines and objects == ends > 0 and events.count(b"}\n\n") == ends


def _plain(text: bytes) -> bool:
    """Whether this, in the place of another text of an event, leaves all else that is said of it true.

    It holds nothing that could end the text, the line or the event, and nothing for which an event is decoded.
    """
    return (
        34 not in text and 10 not in text and 13 not in text and 91 not in text
        and text.isascii() and text not in _WORDS
    )  # fmt: skip


def _is_object(payload: bytes) -> bool:
    """Whether it begins and ends as an object does; what is cut or garbled seldom does."""
    payload = payload.strip()
    return payload.startswith(b"{") and payload.endswith(b"}")


def _split(events: bytes) -> Iterator[bytes]:
    """The events one by one; spare empty lines between them count as one of their own."""
    start = 0
    while start < len(events):
        match = _EMPTY_LINES.match(events, start) or _EVENT_END.search(events, start)
        end = match.end() if match else len(events)
        yield events[start:end]
        start = end


def _payload(event: bytes) -> bytes | None:
    """The data of one event, its lines joined; None where it has none."""
    lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def _decode(payload: bytes) -> Any:
    """The event's JSON, or None. Where strict reading fails, wrong UTF-8 and lone surrogates are let through."""
    try:
        return orjson.loads(payload)
    except ValueError:
        pass
    try:
        return json.loads(payload.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
