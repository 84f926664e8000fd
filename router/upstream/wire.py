"""One socket to an upstream: HTTP/1.1 over httptools, one exchange at a time, each phase with a deadline.

Owns framing and deadlines. What an answer means, and which socket carries the next request, is not known here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol, cast

import httptools

from router.upstream.address import Bounds, Deadlines, Kind, UpstreamError
from router.upstream.chunks import unframed
from router.upstream.response import NEVER, Progress, Response
from router.upstream.tuning import tune

HURRY_S = 1.0
"""How long the rest of an answer may take that nobody reads any more; then the socket is closed."""
SMALL = 65_536
"""Bodies up to this are copied behind their head, so that both go out at once."""
TICK_S = 0.001
"""The loop may fire a clock tick early."""


class Home(Protocol):
    """Where a socket belongs: told of every change that matters for using it again."""

    tcp: bool

    def made(self, wire: Wire) -> None: ...
    def lost(self, wire: Wire) -> None: ...
    def spoiled(self, wire: Wire) -> None: ...
    def free(self, wire: Wire) -> bool: ...
    def ended(self) -> None: ...


class Wire(asyncio.Protocol):
    """One socket: at most one exchange at a time, then back home. Also httptools' listener (`on_…`)."""

    def __init__(self, home: Home, bounds: Bounds) -> None:
        self.loop = asyncio.get_running_loop()
        self.lost = self.loop.create_future()
        self.used = False
        """Whether it has carried an exchange before: only then may a silent end be a stale keep-alive."""
        self.silent = True
        """Whether nothing has been received since the request was sent."""
        self.peer = ""
        """The address it is connected to; empty for a Unix socket."""
        self._home, self._bounds = home, bounds
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._response: Response | None = None
        self._paused, self._paused_at = False, 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._unsent = 0
        self._deadlines = Deadlines()
        self._pieces: list[bytes] = []
        self._begin(None)

    def _begin(self, response: Response | None) -> None:
        self._response = response
        self.silent = True
        self._complete = self._extra = self._reusable = self._until_eof = self._unread = self._oversized = False
        self._chunk_ended = self._between = False
        """Whether the last thing the parser found was the end of a chunk; whether nothing has come behind it."""
        self._header_size = self._header_lines = self._dry = 0

    # ---- the exchange

    def send(
        self, head: bytes, body: bytes, deadlines: Deadlines, started: float, *, stream: bool, whole: bool,
        elsewhere: Callable[[], bool] | None,
    ) -> Response:  # fmt: skip
        """Write one request; the answer's head is waited for through the response.

        `stream`, `whole`, `elsewhere`: see Connections.post.
        """
        now = self.loop.time()
        progress = Progress(now, started, deadlines, by_event=stream, elsewhere=elsewhere)
        response = Response(self, self._bounds.body_bytes, progress, whole=whole)
        self._begin(response)
        transport = self._transport
        if transport is None:  # lost as soon as it was made
            self.fail("closed", "the connection was closed before anything was sent")
            return response
        self._deadlines = deadlines
        if len(body) <= SMALL:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        self._unsent = 0
        self._watch(progress.next_look(now, deadlines))
        return response

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def fail(self, kind: Kind, message: str) -> None:
        """Abort the socket and end the exchange, if there is one, with this error."""
        self._end(UpstreamError(kind, message))
        if self._transport is not None:
            self._transport.abort()

    def _end(self, error: UpstreamError | None) -> None:
        response = self._response
        if response is None:
            return
        self._response = None
        if response.socket is not None:  # else its reader has had enough already
            response.end(error)
        self._home.ended()

    def _finish(self) -> None:
        """The answer is whole: give the socket back, or close it where the next answer could not be trusted."""
        transport = self._transport
        if transport is None:
            return
        if self._paused:
            self.resume()
        self._end(None)
        self.used = True
        # A peer that answered before it took the whole request would read the rest as the next one.
        if not self._reusable or transport.get_write_buffer_size() or not self._home.free(self):
            transport.abort()

    def pause(self) -> None:
        """Take nothing more from the socket; the upstream then has to wait."""
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused, self._paused_at = True, self.loop.time()
            self._transport.pause_reading()

    def resume(self) -> None:
        """Take more; called at every look of a reader, so cheap when nothing was paused."""
        if self._paused and self._transport is not None:
            self._paused = False
            if self._response is not None:
                self._response.progress.held(self._paused_at, self.loop.time())  # the silence was ours
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def hurry(self) -> None:
        """Nobody reads on: what is left may come within HURRY_S, and then the socket can be used again."""
        self._unread, self._between = True, False
        self.resume()
        if self._response is not None:
            self._response.progress.end_at = at = self.loop.time() + HURRY_S
            self._response.progress.token_at = NEVER  # nobody waits for it any more
            self._watch(at)

    # ---- deadlines: one timer, moved only when it fires

    def _watch(self, at: float) -> None:
        """See to it that the timer fires by `at`. It looks at what really happened, so that a chunk costs no timer."""
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer, self._timer_at = self.loop.call_at(at, self._check), at

    def _check(self) -> None:
        self._timer = None
        response, transport = self._response, self._transport
        if response is None or transport is None:
            return
        now, progress = self.loop.time() + TICK_S, response.progress
        if self._paused:
            progress.held(self._paused_at, now)
            self._paused_at = now
        if late := progress.overdue(now, self._deadlines):
            self.fail(*late)
            return
        unsent = transport.get_write_buffer_size()
        if unsent and unsent == self._unsent and not response.status:
            self.fail("idle_timeout", f"it took nothing of the request for {self._deadlines.idle_s:g} s")
            return
        self._unsent = unsent
        self._watch(progress.next_look(now, self._deadlines))

    # ---- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass
        self._home.made(self)
        if self._home.tcp:
            tune(transport.get_extra_info("socket"))
            self.peer = str((transport.get_extra_info("peername") or ("",))[0])

    def data_received(self, data: bytes) -> None:
        """Bytes came: the parser calls the methods below for what is in them."""
        response = self._response
        # Whole chunks where a chunk begins would leave the parser as it is: it need not see them.
        sink = response.sink if self._between and response is not None else None
        if sink is not None and (held := unframed(data)) is not None:
            self._dry = 0
            sink(held)
            return
        if response is None:  # nothing was asked: what comes now would be taken for the next answer
            self._drop()
            return
        self.silent = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._hand_over(response)
            self.fail("bad_response", "the answer is not valid HTTP/1.1")
            return
        if self._extra:
            self.fail("bad_response", "the answer is longer than it said")
            return
        # Bytes that bring no body are headers, trailers or chunk extensions, and those are bounded.
        self._dry = 0 if self._hand_over(response) else self._dry + len(data)
        if self._response is not response:  # whoever takes it wants no more
            return
        bounds = self._bounds
        if self._header_size > bounds.header_bytes or self._dry > bounds.header_bytes:
            self.fail("bad_response", f"the answer's headers are larger than {bounds.header_bytes} bytes")
        elif self._header_lines > bounds.header_lines:
            self.fail("bad_response", f"the answer has more than {bounds.header_lines} lines of headers")
        elif response.whole and (self._oversized or response.held > bounds.body_bytes):
            self.fail("too_large", f"the answer is larger than {bounds.body_bytes} bytes")
        elif self._complete:
            self._finish()
        elif response.status:
            if response.held > bounds.buffer_bytes and not response.whole:
                self.pause()
            response.arrived()
            # A line that began behind the last chunk has not ended, or the parser would have told its size.
            ended = self._chunk_ended and data.endswith(b"\r\n")
            self._between = ended and response.progress.by_event and not self._unread

    def _hand_over(self, response: Response) -> bool:
        """Give the response what the parser found of the body; False where it found nothing."""
        pieces = self._pieces
        if not pieces:
            return False
        # As one: very many tiny pieces would weigh many times what they hold.
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if not self._unread:
            progress = response.progress
            if not progress.by_event:
                progress.body(len(data), self.loop.time())
            response.add(data)
        return True

    def eof_received(self) -> None:
        if self._response is None:
            self._drop()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone: an answer that is not whole by then has failed, but for one that ends with it."""
        self._drop()
        self._transport = None
        self._home.lost(self)
        if self._timer is not None:
            self._timer.cancel()
        if exc is None and self._until_eof:
            self._end(None)
        elif exc is None:
            self._end(UpstreamError("closed", "the connection was closed before the end of the answer"))
        else:
            self._end(UpstreamError("reset", "the connection broke before the end of the answer"))
        del self._parser  # it points back here
        if not self.lost.done():
            self.lost.set_result(None)

    def _drop(self) -> None:
        """Never hand it out again."""
        self._home.spoiled(self)
        if self._transport is not None:
            self._transport.abort()

    # ---- httptools' side

    def on_message_begin(self) -> None:
        self._extra = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """One line of the head, or a trailer."""
        self._header_size += len(name) + len(value) + 4
        self._header_lines += 1
        response = self._response
        if response is None or response.status:  # later ones are trailers
            return
        known, text = _lower(name), value.decode("latin-1")
        if known == "retry-after" and known in response.headers:
            text = "twice"  # which of them is meant cannot be known
        response.headers[known] = text

    def on_headers_complete(self) -> None:
        """The head is whole: whether it can be read on, and where its body ends."""
        response, parser = self._response, self._parser
        status = parser.get_status_code()
        if response is None or self._complete:
            return
        if 100 <= status < 200:  # 100 and 103 announce the answer; 101 makes httptools stop
            response.headers.clear()
            return
        coding, length = response.headers.get("transfer-encoding"), response.headers.get("content-length")
        foreign = status < 100 or parser.get_http_version() != "1.1"
        if foreign or (coding is not None and coding.lower() != "chunked"):
            raise ValueError("framing this client does not take")  # ends feed_data with HttpParserError
        self._reusable = parser.should_keep_alive()  # asked here, since the parser forgets it at the message's end
        self._until_eof = coding is None and length is None
        self._oversized = length is not None and int(length) > self._bounds.body_bytes
        response.progress.begun(well=status == 200)
        response.status = status

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_chunk_header(self) -> None:
        self._chunk_ended = False

    def on_chunk_complete(self) -> None:
        self._chunk_ended = True

    def on_message_complete(self) -> None:
        if self._response is not None and self._response.status:
            self._complete = True


@lru_cache(256)
def _lower(name: bytes) -> str:
    return name.decode("latin-1").lower()  # the same few come with every answer
