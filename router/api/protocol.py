"""One connection of a caller: bytes to requests, one after the other, and how long each part of that may take.

uvicorn owns the sockets, TLS and the orderly stop, and makes one `Connection` for each; see `protocol_of`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from router.api import answers
from router.api.edge import Edge, Handler
from router.api.exchange import NOBODY, Exchange
from router.api.ids import new_id
from router.api.inlet import Inlet
from router.api.outlet import HalfClosed, Outlet
from router.api.shedding import Level
from router.api.states import LINGER_S, State, longest
from router.api.timer import NEVER, Timer
from router.errors import HeadgateError, Overloaded, RequestTimeout

AHEAD = 64 * 1024
"""Bytes a client may send ahead while it is answered; then it is read no further, and its leaving is not seen."""
AT_ONCE = 16
"""Requests that are refused by their heads in one go; then others have their turn."""
LOG = logging.getLogger("headgate.router")


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, edge: Edge, connections: set[Any], tasks: set[Any]) -> None:
        self._edge, self._settings = edge, edge.settings
        self._connections, self._tasks = connections, tasks
        self._loop = asyncio.get_running_loop()
        self._timer = Timer(self._loop, self._due)
        self._state, self._since = State.idle, self._loop.time()
        self._in = Inlet()
        self._exchange: Exchange | None = None
        self._handler: Handler | None = None
        self._task: asyncio.Task[None] | None = None
        self._half_closed: HalfClosed | None = None
        self._held = 0
        """Bytes of the present request's body that are counted with those of all others."""
        self._counted = self._begun = self._unread = self._ahead = self._stopping = False

    # ---- the connection, as uvicorn and the loop see it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come; one that is one too many is told so."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass
        settings = self._settings
        self.out = Outlet(self._transport, self._timer, settings.write_timeout_s, settings.keep_alive_s)
        self._connections.add(self)
        self._counted = self._edge.enter(self)
        if self._counted:
            self._timer.by(self._since + settings.idle_connection_s)
        else:
            error = Overloaded("Too many connections are open; try again later.", retry_after=1)
            self._refuse(Exchange(self.out, self._edge.rates, new_id()), error)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or was let go: whatever is done for it ends."""
        self._leave()
        self._connections.discard(self)
        self._timer.cancel()
        self._state = State.lost
        if self._task is not None:
            self._task.cancel()  # closes the upstream's socket, so that the engine stops at once
        if not self._begun:
            self._finish()

    def pause_writing(self) -> None:
        self.out.pause()

    def resume_writing(self) -> None:
        """The client has caught up: what it asked meanwhile is looked at."""
        self.out.resume()
        self._read_heads()

    def eof_received(self) -> bool | None:
        """The client sends no more. Where it may still wait for an answer the connection stays."""
        exchange = self._exchange
        if self._state is not State.answering or exchange is None or exchange.head.old:
            return None
        if self._transport.get_extra_info("sslcontext") is not None:
            return None  # TLS knows no half of a connection
        self.out.keep = False
        self._half_closed = HalfClosed(self._transport, exchange)
        return True

    def shutdown(self) -> None:
        """Called by uvicorn when it stops: what is being answered is finished, then the connection is closed."""
        self._stopping, self.out.keep = True, False
        if self._state in (State.idle, State.lingering):
            self.close()

    def close(self) -> None:
        """Close once everything written was taken, or when the time for that is over."""
        if self._state in (State.closing, State.lost):
            return
        self._leave()
        self._state = State.closing
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._timer.by(self._loop.time() + self._settings.write_timeout_s)

    def _leave(self) -> None:
        if self._counted:
            self._counted = False
            self._edge.leave(self)

    # ---- from bytes to a request

    def data_received(self, data: bytes) -> None:
        """Read on, as far as the state wants it."""
        if self._state is State.lingering:
            return
        self._in.feed(data)
        if self._state is State.body:
            self._read_body()
        elif self._state is not State.answering:
            self._read_heads()
        if len(self._in.buffer) > AHEAD and not self._ahead and self._state is not State.body:
            self._ahead = True
            self._transport.pause_reading()

    def _read_heads(self) -> None:
        """Take requests until one has to be waited for: for the rest of its head, its body or its answer.

        A client that does not take its answers is not asked for more of what it wants.
        """
        taken = 0
        while self._in.buffer and self._state in (State.idle, State.head) and not self.out.paused:
            if taken == AT_ONCE:
                self._loop.call_soon(self._read_heads)
                break
            taken += 1
            exchange = Exchange(self.out, self._edge.rates, new_id())
            try:
                head = self._in.head()
                if head is None:
                    if self._in.buffer and self._state is State.idle:
                        self._edge.busy(self)
                        self._enter(State.head, self._settings.header_timeout_s)
                    break
                exchange.head = head
                limit = self._accept(exchange)
            except HeadgateError as refused:
                self._refuse(exchange, refused)
                continue
            self._receive(exchange, limit)
        self._read_on()

    def _read_on(self) -> None:
        """Read what was left unread while the client was far ahead, once it is so no longer."""
        if self._ahead and len(self._in.buffer) <= AHEAD and not self._transport.is_closing():
            self._ahead = False
            self._transport.resume_reading()

    def _accept(self, exchange: Exchange) -> int:
        """Look at what can be looked at before the body; returns the bytes it may have. Raises HeadgateError."""
        edge, head = self._edge, exchange.head
        full = edge.load.level(self._loop.time()) is not Level.fine
        self.out.keep = head.keep_alive and not self._stopping and not full
        self._handler = edge.handler(head.path)
        return self._handler.accept(exchange)

    def _refuse(self, exchange: Exchange, error: HeadgateError) -> None:
        """Answer with an error by the head alone, or by what was to be one."""
        self._edge.busy(self)
        if exchange.caller is None:
            self._edge.count(error.code)
        if exchange.head is NOBODY or not self._in.skip(exchange.head):
            self._unread, self.out.keep = True, False
        exchange.fail(error)
        self._end()

    def _receive(self, exchange: Exchange, limit: int) -> None:
        """A request was accepted: read its body, as far as it is here."""
        self._edge.busy(self)
        self._edge.load.open += 1
        self._exchange, head = exchange, exchange.head
        if not limit:
            if not self._in.skip(head):
                self._unread, self.out.keep = True, False
            self._start(b"")
            return
        self._in.expect(head, limit)
        if head.expects and not self._in.buffer:
            self.out.write(answers.CONTINUE)
        self._read_body()

    def _read_body(self) -> None:
        """Start the answer once the body is whole."""
        try:
            body = self._in.body()
            self._hold()
        except HeadgateError as wrong:
            self._refuse_body(wrong)
            return
        if body is not None:
            if self._in.lost:
                self._unread, self.out.keep = True, False
            self._start(body)
        elif self._state is not State.body:
            self._enter(State.body, self._settings.body_timeout_s)

    def _hold(self) -> None:
        """Count what has come of the body until the request is over. Raises HeadgateError where all have too much."""
        more = self._in.received - self._held
        self._held += more
        self._edge.load.hold(more)

    def _refuse_body(self, error: HeadgateError) -> None:
        """The body is too large, too slow or broken: nothing more of it is read."""
        assert self._handler is not None and self._exchange is not None
        self._handler.refuse(self._exchange, error)
        self._unread, self.out.keep = True, False
        self._exchange.fail(error)
        self._finish()
        self._end()

    # ---- from a request to its answer

    def _start(self, body: bytes) -> None:
        assert self._handler is not None and self._exchange is not None
        self._state = State.answering
        self._task = self._loop.create_task(self._answer(self._handler, self._exchange, body))
        self._tasks.add(self._task)

    async def _answer(self, handler: Handler, exchange: Exchange, body: bytes) -> None:
        """One request to its end. The outermost handler: whatever happens, there is one well-formed answer."""
        self._begun = True
        try:
            await handler.answer(exchange, body)
        except HeadgateError as failed:
            exchange.fail(failed)
        except asyncio.CancelledError:
            if self._state is not State.lost:  # it is the router that ends, not the client
                self.out.keep = False
                exchange.fail(Overloaded("The router is being stopped; try again.", retry_after=1))
        except Exception:
            LOG.exception("request %s failed", exchange.id)
            exchange.fail(HeadgateError("Something went wrong inside Headgate; the operator's log has the reason."))
        finally:
            self._finish()
            if self._state is not State.lost:
                self.out.keep = self.out.keep and not exchange.broken
                self._end()
                self._read_heads()

    def _finish(self) -> None:
        """The request is over, answered or not."""
        if self._exchange is not None:
            self._exchange = None
            self._edge.load.open -= 1
            self._edge.load.free(self._held)
            self._held = 0
        if self._task is not None:
            self._tasks.discard(self._task)
            self._task = None
        if self._half_closed is not None:
            self._half_closed.cancel()
        self._begun = False

    def _end(self) -> None:
        """It was answered: wait for the next request, or close."""
        if self.out.keep:
            self._enter(State.idle, self._settings.idle_connection_s)
            self._edge.idle(self)
        elif self._unread and not self._transport.is_closing():
            self._in = Inlet()
            self._read_on()
            self._enter(State.lingering, LINGER_S)
            if self._transport.can_write_eof():
                self._transport.write_eof()
        else:
            self.close()

    # ---- how long each part may take

    def _enter(self, state: State, within_s: float) -> None:
        self._state, self._since = state, self._loop.time()
        self._timer.by(self._since + within_s)

    def _due(self, now: float) -> float:
        """Do what the time has come for; returns when to look again."""
        if (again := self.out.behind(now)) is not None:
            return again
        ends = self._ends()
        if now < ends:
            return ends
        if self._state is State.answering and self._exchange is not None:
            self._exchange.keep_alive()
            return now + self._settings.keep_alive_s
        self._too_late()
        return self._ends()

    def _ends(self) -> float:
        """When the state has lasted too long."""
        if self._state is State.answering:
            streams = self._exchange is not None and self._exchange.streams
            return self.out.sent_at + self._settings.keep_alive_s if streams else NEVER
        return self._since + longest(self._state, self._settings, self._in.received)

    def _too_late(self) -> None:
        """The client took too long: it is told so if it had begun to say something."""
        late = RequestTimeout("The request did not come whole in time.")
        if self._state is State.head:
            self._refuse(Exchange(self.out, self._edge.rates, new_id()), late)
        elif self._state is State.body and self._exchange is not None:
            self._refuse_body(late)
        else:
            self.close()


def protocol_of(edge: Edge) -> Callable[..., Connection]:
    """What uvicorn calls for each connection it has accepted."""

    def made(*, server_state: Any, **_: Any) -> Connection:
        return Connection(edge, server_state.connections, server_state.tasks)

    return made
