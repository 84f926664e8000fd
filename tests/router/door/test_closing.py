"""The operator closes the door: nothing leaves from then on, whatever was under way, and over restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from router.door import closing
from router.door.book import Book, verify
from router.door.closing import ODD, Shut

SHUT = Shut(1000.0, "jo", "we look into something")


def shut(house: Any, **changed: Any) -> None:
    closing.close(closing.marker(house.home.book), SHUT._replace(**changed))


def reopen(house: Any) -> None:
    closing.reopen(closing.marker(house.home.book))


async def refused(house: Any, far: Any) -> None:
    """A request is refused as closed, and not a byte is at the provider."""
    seen = far.bytes_seen
    status, mark, found = await house.send()
    assert (status, mark, found["error"]["code"]) == (503, "closed", "door_closed")
    assert far.bytes_seen == seen


def kinds(house: Any) -> list[str]:
    return [entry["kind"] for entry in house.book()]


def test_what_was_closed_is_read_as_it_was_written_and_reopened(tmp_path: Path) -> None:
    path = tmp_path / "closed.json"
    assert closing.look(path) is None
    closing.close(path, SHUT)
    assert closing.look(path) == SHUT and path.stat().st_mode & 0o777 == 0o600
    closing.close(path, SHUT._replace(reason="two\nlines " + "x" * 300))
    found = closing.look(path)
    assert found is not None and found.reason.startswith("two lines x") and len(found.reason) == 200
    closing.reopen(path)
    closing.reopen(path)
    assert closing.look(path) is None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "odd", [b"", b"{", b"[]", b"null", b'{"at": "soon", "by": "", "reason": ""}', b'{"at": 1}', b"\xff\xff"]
)
def test_a_file_that_cannot_be_read_closes_it(tmp_path: Path, odd: bytes) -> None:
    path = tmp_path / "closed.json"
    path.write_bytes(odd)
    assert closing.look(path) == ODD


def test_a_folder_in_its_place_or_none_around_it_closes_it(tmp_path: Path) -> None:
    (tmp_path / "closed.json").mkdir()
    assert closing.look(tmp_path / "closed.json") == ODD
    assert closing.look(tmp_path / "gone" / "closed.json") == ODD
    (tmp_path / "file").touch()
    assert closing.look(tmp_path / "file" / "closed.json") == ODD


async def test_closing_holds_for_the_very_next_request_and_opening_too(house: Any, far: Any) -> None:
    await house.start()
    assert (await house.send())[0] == 200
    await house.ended()
    shut(house)
    await refused(house, far)
    said = await house.status()
    assert said["open"] is False and "the operator closed it" in said["closed_because"]
    assert SHUT.reason not in said["closed_because"], "callers are told that"
    assert said["operator"] == SHUT._asdict()
    await refused(house, far)
    reopen(house)
    assert (await house.send())[0] == 200
    await house.ended(2)
    told = ["opened", "sending", "ended", "door_closed", "refused", "refused", "door_opened", "sending", "ended"]
    assert kinds(house) == told and verify(house.home.book) == []
    closed = house.book()[3]
    assert [closed[name] for name in ("by", "user", "reason", "since")] == ["operator", "jo", SHUT.reason, SHUT.at]


async def test_it_stays_closed_when_the_door_starts_again(house: Any, far: Any) -> None:
    shut(house)
    for _ in range(2):
        await house.start()
        await refused(house, far)
        await house.end()
        house.stop = asyncio.Event()
    assert kinds(house) == ["opened", "door_closed", "refused"] * 2
    await house.start()


async def test_what_is_under_way_is_cut_off(house: Any, far: Any) -> None:
    """A body that waits for its answer, and a stream that has begun: neither is passed on as whole."""
    reached = asyncio.Event()

    async def never(writer: asyncio.StreamWriter) -> None:
        reached.set()
        await asyncio.Event().wait()

    async def begun(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"9\r\ndata: 1\n\n\r\n")

    await house.start()
    far.reply = never
    waiting = asyncio.create_task(house.send())
    await reached.wait()
    far.reply = begun
    body = house.body(stream=True)
    async with house.client() as client:
        token = house.sealed(house.permit(body))
        answer = await client.post("/send", data=body, headers={"x-headgate-permit": token})
        assert await answer.content.readany() == b"data: 1\n\n"
        shut(house)
        await house.status()
        async with asyncio.timeout(10):
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.content.read()
        answer.close()
    async with asyncio.timeout(10):
        status, mark, found = await waiting
    # Not as closed: the provider had it, so it may be billed.
    assert (status, mark, found["error"]["code"]) == (502, "sent", "cut_by_operator")
    async with asyncio.timeout(5):
        await far.left.wait()
    assert {(e["ended"], e["error"], e["left"]) for e in await house.ended(2)} == {("failed", "cut_by_operator", True)}


async def test_a_door_that_closes_while_it_judges_sends_nothing(
    house: Any, far: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last thing that takes its time, the book, it is looked again."""
    await house.start()
    written = Book.sending

    async def sending(self: Book, entry: dict[str, Any]) -> None:
        await written(self, entry)
        shut(house)

    monkeypatch.setattr(Book, "sending", sending)
    await refused(house, far)
    assert (far.connections, [e["left"] for e in await house.ended()]) == (0, [False])
    assert far.bytes_seen == 0


async def test_the_door_notices_by_itself(house: Any, far: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.door.app.LOOK_S", 0.01)
    await house.start()
    shut(house)
    async with asyncio.timeout(10):
        while "door_closed" not in kinds(house):
            await asyncio.sleep(0.01)


async def told(house: Any, word: bytes) -> tuple[int, Any]:
    """What the door answers to the operator's word at its socket."""
    async with house.client() as client, client.post("/close", data=word) as answer:
        return answer.status, await answer.json()


async def test_it_can_be_closed_by_its_socket_and_never_opened_so(house: Any, far: Any) -> None:
    """The socket is the router's too: a router in a stranger's hands may close the door, and that is all."""
    await house.start()
    status, said = await told(house, b'{"by": "jo", "reason": "two\\nlines"}')
    assert (status, said["open"], said["operator"]["by"], said["operator"]["reason"]) == (200, False, "jo", "two lines")
    await refused(house, far)
    (entry,) = [one for one in house.book() if one["kind"] == "door_closed"]
    assert (entry["user"], entry["reason"]) == ("jo", "two lines")
    async with house.client() as client:
        for path in ("/open", "/reopen", "/close/"):
            async with client.post(path, data=b"{}") as answer:
                assert answer.status == 404
    await refused(house, far)
    reopen(house)
    assert (await house.send())[0] == 200


@pytest.mark.parametrize("word", [b"", b"{", b"[]", b'{"by": "jo"}', b"x" * 100_000], ids=len)
async def test_whatever_form_the_word_has_it_closes(house: Any, far: Any, word: bytes) -> None:
    await house.start()
    status, said = await told(house, word)
    assert (status, said["open"]) == (200, False)
    await refused(house, far)


async def test_a_word_that_cannot_be_written_is_not_taken_for_done(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    await house.start()
    monkeypatch.setattr(closing, "close", full)
    status, said = await told(house, b"{}")
    assert status == 503 and "No space left" in said["error"]["message"]
