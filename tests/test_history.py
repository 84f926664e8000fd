"""What was private once does not leave later, over real sockets and through the real door; what only looks so does."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import secrets
from typing import Any

import pytest

from router.ledger.history import open_history
from router.ledger.keys import KeyBook
from router.ledger.released import holding, look, release, release_loss
from router.ledger.store import LedgerError
from router.scanner import reading
from tests.conftest import House, Reply, ask, until
from tests.fakes import asking
from tests.fakes.answers import completion
from tests.fakes.faults import events

SYSTEM = "You are a careful assistant of the accounting department; answer shortly and say when you are not sure."
ANSWER = "She is owed the sum of the three invoices of March, April and May, which were never paid to her by anybody."
OTHER = "A wholly different question about the weather on the coast in November, asked by someone of the team."


def card() -> str:
    """A number that only looks like a payment card's: random, with a right check digit."""
    digits = [4, *(random.randrange(10) for _ in range(14))]
    doubled = sum(d if n % 2 else d * 2 - 9 * (d > 4) for n, d in enumerate(digits))
    return "".join(map(str, [*digits, -doubled % 10]))


def private() -> str:
    return f"Please charge what our customer owes us since last spring to her card, which is {card()}, and tell me."


def turns(*said: str, system: str = SYSTEM) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    talk = [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]
    return [{"role": "system", "content": system}, *talk]


async def answered_here(house: House, key: str, text: str, said: str = ANSWER, **more: Any) -> Reply:
    """A request with something in it that stays, and is answered by the local model."""
    house.local.script = {"body": completion(said)}
    reply = await house.post({**ask(), "messages": turns(text), **more.pop("body", {})}, key, **more)
    assert (reply.status, reply.headers["x-headgate-place"]) == (200, "local"), reply.body
    return reply


async def leaves(house: House, key: str, *said: str, **more: Any) -> Reply:
    """Ask the hosted model by its name; a refusal says why."""
    return await house.post({**ask("big"), "messages": turns(*said)}, key, **more)


async def test_system_prompt_and_hello_of_a_private_conversation_may_still_leave(house: House) -> None:
    await house.start(hosted=True)
    key = house.key("public")
    secret = private()
    house.local.script = {"body": completion(ANSWER)}
    talk = turns("hello", "Hello! How can I help?", secret)
    assert (await house.post({**ask(), "messages": talk}, key)).headers["x-headgate-place"] == "local"
    assert (await leaves(house, key, "hello")).status == 200
    assert (await leaves(house, key, "hello", "Hello! How can I help?", OTHER)).status == 200
    assert secret not in json.dumps([seen.json() for seen in house.provider.requests])


@pytest.mark.parametrize("stream", [False, True])
async def test_pg_028_an_answer_that_is_echoed_in_a_new_session_stays(house: House, stream: bool) -> None:
    await house.start(hosted=True)
    key, other = house.key("public"), house.key("public")
    if stream:
        house.local.script = {"headers": {"content-type": "text/event-stream"}, "chunks": events(ANSWER.split(" "))}
        reply = await house.post({**ask(stream=True), "messages": turns(private())}, key)
        said = "".join(ANSWER.split(" "))
    else:
        reply, said = await answered_here(house, key, private()), ANSWER
    assert reply.headers["x-headgate-place"] == "local"
    for echo in (said, f"> {said[:-1]}"):
        seen = len(house.provider.requests)
        reply = await leaves(house, other, OTHER, "Yes?", echo, headers={"x-headgate-session": secrets.token_hex(4)})
        whole = echo == said
        assert reply.status == (403 if whole else 200), reply.body
        assert len(house.provider.requests) == seen + (not whole)
    reply = await leaves(house, other, said.replace(" ", "\n\n"))
    assert reply.error["code"] == "data_class_not_cleared"
    assert "an answer to an earlier request" in reply.error["message"]


async def test_pg_028_a_session_that_was_private_stays_so_under_a_public_label(house: House) -> None:
    await house.start(hosted=True)
    key = house.key("public")
    named = {"x-headgate-session": "s1"}
    await answered_here(house, key, private(), headers=named)
    public = {**named, "x-headgate-data-class": "public"}
    assert (await leaves(house, key, OTHER, headers=public)).status == 403
    assert (await leaves(house, key, OTHER)).status == 200
    body = {"metadata": {"session_id": "s1"}}
    assert (await house.post({**ask("big"), "messages": turns(OTHER), **body}, key)).status == 403


async def test_pg_028_a_conversation_without_a_name_stays_private_when_its_label_is_left_out(house: House) -> None:
    await house.start(hosted=True)
    key = house.key("public")
    house.local.script = {"body": completion(ANSWER)}
    label = {"x-headgate-data-class": "private"}
    first = await house.post({**ask(), "messages": turns(OTHER)}, key, headers=label)
    assert first.headers["x-headgate-place"] == "local"
    assert (await leaves(house, key, OTHER, ANSWER, "And tomorrow?")).status == 403
    # What a label raised stays in its session: the texts themselves may leave in another one.
    assert (
        await leaves(house, key, "Please read this to me, word by word, and slowly: " * 2, ANSWER, OTHER)
    ).status == 200


async def test_a_conversation_without_a_name_stays_private_when_its_key_is_rotated(house: House) -> None:
    await house.start(hosted=True)
    key = house.key("public")
    house.local.script = {"body": completion(ANSWER)}
    await house.post({**ask(), "messages": turns(OTHER)}, key, headers={"x-headgate-data-class": "private"})
    with contextlib.closing(KeyBook(house.home.ledger, house.home.secret("pepper"))) as book:
        new = book.rotate(key.split("_")[1], 3600.0)[1]
    for one in (key, new):
        assert (await leaves(house, one, OTHER, ANSWER, "And tomorrow?")).status == 403
    assert house.provider.accepted == 0


PICTURE = base64.b64encode(
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (8).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + bytes(64)
).decode()


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("how", ["label", "media"])
async def test_a_session_is_private_while_its_first_answer_comes(house: House, how: str, named: bool) -> None:
    await house.start(hosted=True, models={"small": {"abilities": ["chat", "vision", "tools", "schema"]}})
    key, session = house.key("public"), {"x-headgate-session": "s1"} if named else {}
    house.local.script = {"gate": True}
    said, label = turns(OTHER), {}
    if how == "label":
        label = {"x-headgate-data-class": "private"}
    else:
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
        said = [*said, {"role": "user", "content": [{"type": "text", "text": "this"}, picture]}]
    first = asyncio.create_task(house.post({**ask(), "messages": said}, key, headers={**session, **label}))
    await until(lambda: house.local.accepted > 0)
    assert (await leaves(house, key, OTHER, headers=session)).status == 403
    assert not first.done()
    house.local.gate.set()
    assert (await first).status == 200
    assert (await leaves(house, key, OTHER, headers=session)).status == 403
    assert house.provider.accepted == 0


async def test_pg_006_an_earlier_turn_holds_the_clean_last_one_here(house: House) -> None:
    await house.start(hosted=True)
    key = house.key("public")
    reply = await leaves(house, key, private(), "Done.", "Thanks! What is the capital of France?")
    assert reply.status == 403
    # The next turn leaves the private one out, and is still the same conversation.
    assert house.provider.accepted == 0


async def test_what_only_stayed_for_its_key_is_searched_after_its_answer(house: House) -> None:
    """A private key's request is not searched before it is answered; a public key of its team still finds it known."""
    await house.start(hosted=True)
    await answered_here(house, house.key("private"), private())
    assert (await leaves(house, house.key("public"), ANSWER)).status == 403
    assert (await leaves(house, house.key("public", team="others"), ANSWER)).status == 200
    await answered_here(house, house.key("private"), OTHER, said=f"Nothing private: {ANSWER}")
    assert (await leaves(house, house.key("public"), f"Nothing private: {ANSWER}")).status == 200


CALL = {
    "id": "call_1", "type": "function",
    "function": {"name": "write_file", "arguments": json.dumps({"path": "a.md", "content": ANSWER})},
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_model_wrote_into_a_call_of_a_tool_is_known_again(house: House, stream: bool) -> None:
    """A file it wrote that is read again in a new session, and the call itself."""
    await house.start(hosted=True)
    key = house.key("public")
    said = {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **CALL}]}
    if stream:
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "small"}
        choices = [{"delta": said, "finish_reason": None}, {"delta": {}, "finish_reason": "tool_calls"}]
        house.local.script = {"stream": [{**chunk, "choices": [{"index": 0, **choice}]} for choice in choices]}
    else:
        whole = json.loads(completion(""))
        whole["choices"][0] |= {"message": said, "finish_reason": "tool_calls"}
        house.local.script = {"body": json.dumps(whole)}
    tools = [{"type": "function", "function": {"name": "write_file"}}]
    reply = await house.post({**ask("small", stream=stream), "messages": turns(private()), "tools": tools}, key)
    assert (reply.status, reply.headers["x-headgate-place"]) == (200, "local"), reply.body
    assert (await leaves(house, key, ANSWER)).status == 403
    again = [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "call_1",
              "content": "ok"}]  # fmt: skip
    assert (await house.post({**ask("big"), "messages": [*turns(OTHER), *again]}, key)).status == 403
    assert house.provider.accepted == 0


async def test_an_answer_of_another_dialect_is_known_again_inside_a_call(house: House) -> None:
    """There the arguments are no text: what stands in them is known, wherever it stands later."""
    await house.start(hosted=True)
    key = house.key("public")
    used = {"type": "tool_use", "id": "t", "name": "write_file", "input": {"path": "a.md", "content": ANSWER}}
    house.local.script = {"body": json.dumps({
        "id": "m", "type": "message", "role": "assistant", "model": "small", "content": [used],
        "stop_reason": "tool_use", "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 3},
    })}  # fmt: skip
    body = {"model": "small", "max_tokens": 50, "messages": [{"role": "user", "content": private()}]}
    assert (await house.post(body, key, "/v1/messages")).status == 200
    assert (await leaves(house, key, ANSWER)).status == 403
    again = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert (await house.post({**ask("big"), "messages": [*turns(OTHER), again]}, key)).status == 403
    assert house.provider.accepted == 0


@pytest.mark.parametrize("field", ["prompt", "suffix"])
async def test_an_answer_is_known_again_on_either_side_of_what_is_to_be_filled_in(house: House, field: str) -> None:
    big = {"abilities": ["chat", "completions", "tools", "schema"], "parameters": ["suffix"]}
    await house.start(hosted=True, models={"big": big})
    key = house.key("public")
    await answered_here(house, key, private())
    body = {"model": "big", "prompt": "x", "max_tokens": 5, field: ANSWER}
    assert (await house.post(body, key, "/v1/completions")).status == 403
    assert house.provider.accepted == 0


async def test_what_was_released_may_leave(house: House) -> None:
    await house.start(hosted=True)
    key = house.key("public")
    reply = await answered_here(house, key, private())
    assert (await leaves(house, key, ANSWER)).status == 403

    def noted() -> bool:
        return len(look(house.home.ledger, reply.headers["x-request-id"])) == 3

    await until(noted)
    marks = {mark.kind: mark for mark in look(house.home.ledger, reply.headers["x-request-id"])}
    assert marks.keys() == {"message", "answer", "session"}
    release(house.home.ledger, [marks["answer"]], "someone", 1.0)
    assert (await leaves(house, key, ANSWER, headers={"x-headgate-session": "new"})).status == 200


async def test_what_held_a_request_back_is_in_its_record_and_released_by_its_id(house: House) -> None:
    await house.start(hosted=True)
    key = house.key("public")
    for number in range(6):
        await answered_here(house, key, private(), said=f"{number}: {ANSWER}")
    answers = [f"{number}: {ANSWER}" for number in range(6)]
    reply = await leaves(house, key, OTHER, *answers)
    assert reply.status == 403
    request = reply.headers["x-request-id"]
    assert f"headgate privacy release --from {request}" in reply.error["message"]
    opened, *_ = await house.events(reply)
    assert len(opened["marks"]) == 6
    await until(lambda: len(holding(house.home.ledger, request) or []) == 6)  # each is known at once, and on disk soon
    release(house.home.ledger, holding(house.home.ledger, request) or [], "someone", 1.0)
    again = await leaves(house, key, f"Once more, in another conversation: {OTHER}", *answers)
    assert again.status == 200, again.body


async def test_a_cache_key_that_all_users_share_holds_back_nobody_else(house: House) -> None:
    await house.start(hosted=True)
    key, shared = house.key("public"), {"prompt_cache_key": "app", "user": "u"}
    await answered_here(house, key, private(), body=shared)
    other = await house.post({**ask("big"), "messages": turns(OTHER), **shared}, key)
    assert other.status == 200, other.body


async def test_a_lost_history_holds_everything_here(house: House) -> None:
    made = open_history(house.home.ledger, house.home.secret("history"), house.home.root / "history-begun", 30)
    made.close()
    for file in house.home.root.glob("ledger.sqlite*"):
        file.unlink()
    await house.start(hosted=True)
    key = house.key("public")
    reply = await leaves(house, key, OTHER)
    assert reply.status == 403
    assert "the history was lost" in reply.error["message"]
    assert house.provider.accepted == 0
    release_loss(house.home.ledger, "someone", 1.0)
    assert (await leaves(house, key, OTHER)).status == 200


async def test_what_was_private_is_written_down_also_where_the_ledger_cannot_be_at_the_end(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.start(hosted=True)
    key = house.key("public")
    reply = await answered_here(house, key, private())
    assert house.built is not None
    close = house.built.store.close

    def fail() -> None:
        close()
        raise LedgerError("1 events of the ledger could not be written: disk full")

    monkeypatch.setattr(house.built.store, "close", fail)
    with pytest.raises(LedgerError, match="1 events"):
        await house.close()
    assert len(look(house.home.ledger, reply.headers["x-request-id"])) == 3
    assert not list(house.home.root.glob("history-begun-*")), "it ended in order"


async def test_another_worker_knows_it_too(house: House) -> None:
    await house.start(hosted=True)
    key = house.key("public")
    other = open_history(house.home.ledger, house.home.secret("history"), house.home.root / "history-begun", 30)
    with contextlib.closing(other):
        reply = await answered_here(house, key, private())
        await until(lambda: bool(look(house.home.ledger, reply.headers["x-request-id"])))
        texts = reading.texts({"messages": turns(ANSWER)})
        assert other.past(asking.caller(team="tests"), asking.ask(session="x"), texts)


async def test_no_text_that_was_remembered_is_written_anywhere(house: House) -> None:
    await house.start(hosted=True)
    text = private()
    reply = await answered_here(house, house.key("public"), text)
    await until(lambda: len(look(house.home.ledger, reply.headers["x-request-id"])) == 3)
    for file in (f for f in house.home.root.rglob("*") if f.is_file()):
        held = file.read_bytes()
        assert text.encode()[-40:] not in held, file
        assert ANSWER.encode()[:30] not in held, file
