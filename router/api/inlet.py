"""The way in from one client: bytes as they come, taken out as heads and bodies."""

from __future__ import annotations

from router.api.heads import Chunks, Head, check_growing, read_head

END = b"\r\n\r\n"


class Inlet:
    """What was received and not taken yet."""

    __slots__ = ("_body", "_chunks", "_missing", "buffer", "lost", "received")

    def __init__(self) -> None:
        self.buffer = b""
        self._body, self._missing = bytearray(), 0
        self._chunks: Chunks | None = None
        self.received = 0
        """Bytes so far of the body that is being read."""
        self.lost = False
        """Whether something of the next request was lost behind a chunked body, so that no other can be found."""

    def feed(self, data: bytes) -> None:
        """More has come."""
        self.buffer = self.buffer + data if self.buffer else data

    def head(self) -> Head | None:
        """The next head; None while it is not whole. Raises HeadgateError: nothing after it can be understood."""
        buffer = self.buffer
        if buffer[:1] in b"\r\n":
            buffer = self.buffer = buffer.lstrip(b"\r\n")
        end = buffer.find(END) + len(END)
        if end >= len(END):
            self.buffer = buffer[end:]
            return read_head(buffer[:end])
        if buffer:
            check_growing(buffer)
        return None

    def skip(self, head: Head) -> bool:
        """Drop a body that nobody wants. False where it is not all here: then no other request can be found."""
        if head.chunked or head.length > len(self.buffer):
            return False
        self.buffer = self.buffer[head.length :]
        return True

    def expect(self, head: Head, limit: int) -> None:
        """A body of at most `limit` bytes is next."""
        self.received = 0
        if head.chunked:
            self._chunks = Chunks(limit)
        else:
            self._missing = head.length

    def body(self) -> bytes | None:
        """The body; None while it is not whole. Raises HeadgateError."""
        data, self.buffer = self.buffer, b""
        self.received += len(data)
        if self._chunks is not None:
            return self._of_chunks(self._chunks, data)
        if not self._body and len(data) >= self._missing:
            self.buffer = data[self._missing :]
            return data[: self._missing]
        self._body += data[: self._missing]
        self.buffer, self._missing = data[self._missing :], self._missing - len(data)
        if self._missing > 0:
            return None
        whole, self._body = bytes(self._body), bytearray()
        return whole

    def _of_chunks(self, chunks: Chunks, data: bytes) -> bytes | None:
        chunks.feed(data)
        if not chunks.whole:
            return None
        self._chunks, self.lost = None, chunks.more
        return bytes(chunks.body)
