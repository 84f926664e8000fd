"""Pure: what an answer said, kept small while it passes and read only after it has ended.

Of a stream the events are kept, and of those that differ in one text alone only that text: a token in five bytes and
not in 250.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from router.records import Route

MOST_KEPT = 1024 * 1024
"""Bytes kept of one stream."""
MOST_WHOLE = 16 * 1024 * 1024
LESSONS = 16
FOLD = 32 * 1024
"""Bytes of events that are kept as they came; with more they are read, which takes a fifth of a millisecond."""
LONG = 64
"""Shorter strings of a whole answer are its own words: ids, types, reasons."""
_TEXT = re.compile(
    rb'"(?:content|text|reasoning|reasoning_content|delta|thinking|partial_json|arguments)": ?"([^"\\]*)"'
)
"""Inside a text the quotes would be escaped, so these are no words of a model."""
_ROOTS: dict[Route, str] = {"responses": "output", "messages": "content"}
"""Where a whole answer says what it says, if not in `choices`. Beside it responses repeat the request."""
_PARTS = ("content", "text", "reasoning", "reasoning_content", "refusal")


class Texts:
    """Texts that grow, by where they stand."""

    __slots__ = ("pieces", "size")

    def __init__(self) -> None:
        self.pieces: dict[tuple[Any, ...], list[str]] = {}
        self.size = 0

    def take(self, where: tuple[Any, ...], text: Any) -> None:
        if isinstance(text, str) and text:
            self.pieces.setdefault(where, []).append(text)
            self.size += len(text)


class Kept:
    """What one stream said, as its events were passed on."""

    __slots__ = ("_after", "_before", "_misses", "_parts", "_raw", "_read", "_run", "_texts", "over", "size")

    def __init__(self, route: Route) -> None:
        self.size = 0
        self.over = False
        """Whether it was too much, so that nothing is kept."""
        self._read = {"responses": _responses, "messages": _messages}.get(route, _chat)
        self._texts = Texts()
        self._parts: list[bytes] = []
        """Events that are not read yet, of `_raw` bytes."""
        self._raw = 0
        self._misses = 0
        """How many events in a row were like none before; of some streams no two are alike."""
        self._before = self._after = b""
        """What stands around the text of the events that come now."""
        self._run = bytearray()
        """Their texts, one after the other: together they are one text of one such event."""

    def add(self, data: bytes) -> None:
        """Take whole events."""
        before, after = self._before, self._after
        if before and data.startswith(before) and data.endswith(after):
            text = data[len(before) : -len(after)]
            if 34 not in text and 10 not in text and not text.endswith(b"\\"):  # a quote or a line would end the text
                self._run += text
                self.size += len(text)
                self._misses = 0
                if self.size <= MOST_KEPT:
                    return
        if self.over:
            return
        events = data.split(b"\n\n") if self._misses < LESSONS else []
        if len(events) > 2 and not events[-1]:
            for event in events[:-1]:
                self.add(event + b"\n\n")
        elif self.size <= MOST_KEPT:
            self._begin(data)
        if self.size + self._raw > MOST_KEPT:
            self.over, self._before = True, b""
            self._parts, self._texts, self._run = [], Texts(), bytearray()

    def _begin(self, event: bytes) -> None:
        """An event of another form: those that follow may be like it."""
        self._end_run()
        found = _TEXT.search(event) if self._misses < LESSONS else None
        self._misses += 1
        if found is None:
            self._part(event)
            return
        self._before, self._after = event[: found.start(1)], event[found.end(1) :]
        self._run += found[1]
        self.size += len(found[1])

    def _end_run(self) -> None:
        if self._before:
            self.size -= len(self._run)  # until it is read
            self._part(self._before + bytes(self._run) + self._after)
            self._run.clear()
            self._before = b""

    def _part(self, part: bytes) -> None:
        self._parts.append(part)
        self._raw += len(part)
        if self._raw > FOLD:
            self._fold()

    def _fold(self) -> None:
        """Read what was kept as it came: of some streams no two events are alike."""
        held: list[bytes] = []  # the lines of an event that is written on several
        for line in (*b"\n".join(self._parts).splitlines(), b""):
            if not line:
                self._take(b"\n".join(held))
                held = []
            elif line.startswith(b"data:") and (held or not self._take(line[5:])):
                held.append(line[5:])
        self._parts, self._raw = [], 0
        self.size = self._texts.size

    def _take(self, data: bytes) -> bool:
        """Note what one event says. False where it is not whole."""
        found = _json(data) if data else None
        if isinstance(found, dict):
            self._read(found, self._texts)
        return found is not None

    def texts(self) -> Texts:
        """Its texts by where they stand, in pieces."""
        self._end_run()
        self._fold()
        return self._texts


class Said:
    """What one answer said. It is read in `texts`, which is not for the event loop."""

    __slots__ = ("_kept", "_route", "_whole", "size")

    def __init__(self, route: Route, whole: bytes = b"", kept: Kept | None = None) -> None:
        """`whole`: the body of an answer that is no stream; `kept`: what was kept of one that is."""
        self._route, self._whole, self._kept = route, whole, kept
        self.size = len(whole) if kept is None else kept.size
        """About the bytes it takes until it is let go of."""

    @property
    def over(self) -> bool:
        """Whether it was too long to be kept."""
        return self._kept.over if self._kept is not None else len(self._whole) > MOST_WHOLE

    def texts(self) -> list[str]:
        """Its texts, the one that its caller is shown first; none where there is nothing to be read."""
        if self.over:
            return []
        return list(_whole(self._route, self._whole) if self._kept is None else _joined(self._kept.texts()))


def _whole(route: Route, body: bytes) -> Iterator[str]:
    """What the caller is shown first, then every other long string."""
    found = _json(body)
    said = found.get(_ROOTS.get(route, "choices")) if isinstance(found, dict) else None
    first = next((text for key, text in _strings(said) if key in ("content", "text")), "")
    if first:
        yield first
    strings = [*_strings(said)]
    # What a tool is called with is JSON inside a text: a file that was written so is read again without it.
    strings += [inner for key, text in strings if key == "arguments" for inner in _strings(_json(text))]
    yield from dict.fromkeys(text for _, text in strings if len(text) >= LONG and text != first)


def _strings(found: Any) -> Iterator[tuple[str, str]]:
    """Every string below, with the nearest field's name, in the order of the document."""
    stack: list[tuple[str, Any]] = [("", found)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            stack += reversed([(name, inner) for name, inner in value.items() if name != "logprobs"])
        elif isinstance(value, list):
            stack += [(key, inner) for inner in reversed(value)]


def _joined(texts: Texts) -> Iterator[str]:
    for where in sorted(texts.pieces, key=str):
        text = "".join(texts.pieces[where])
        yield text
        if where[0] == "json":
            yield from (inner for _, inner in _strings(_json(text)) if len(inner) >= LONG)


def _chat(found: dict[str, Any], texts: Texts) -> None:
    for choice in _dicts(found.get("choices")):
        number = _number(choice, "index")
        texts.take(("0", number, 0, "text"), choice.get("text"))
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            continue
        for place, name in enumerate(_PARTS):
            texts.take(("0", number, place, name), delta.get(name))
        for call in _dicts(delta.get("tool_calls")):
            function = call.get("function")
            if isinstance(function, dict):
                texts.take(("json", number, _number(call, "index")), function.get("arguments"))


def _responses(found: dict[str, Any], texts: Texts) -> None:
    kind = str(found.get("type"))
    if kind.endswith(".delta"):
        shown = "0" if kind == "response.output_text.delta" else "json" if "arguments" in kind else "1"
        part = _number(found, "content_index" if "content_index" in found else "summary_index")
        texts.take((shown, _number(found, "output_index"), part, kind), found.get("delta"))


def _messages(found: dict[str, Any], texts: Texts) -> None:
    delta = found.get("delta")
    if found.get("type") == "content_block_delta" and isinstance(delta, dict):
        number = _number(found, "index")
        texts.take(("0", number), delta.get("text"))
        texts.take(("1", number), delta.get("thinking"))
        texts.take(("json", number), delta.get("partial_json"))


def _number(found: dict[str, Any], name: str) -> int:
    number = found.get(name)
    return number if isinstance(number, int) else 0


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _json(text: str | bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return None
