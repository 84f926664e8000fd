"""What the fault upstream sends: whole answers and event streams of each inference route, as vLLM makes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def completion(text: str = "Hello.") -> str:
    """A chat completion as vLLM answers it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    return json.dumps({"id": "c1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})


def events(deltas: list[Any], *, usage: bool = True) -> list[Any]:
    """The events of a streamed chat completion as vLLM sends them, `[DONE]` included.

    What among `deltas` is no text stays as it is, a dict being an event's document: see `stream` in faults.py.
    """

    def chunk(choices: list[Any], **more: Any) -> bytes:
        return event({"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": choices, **more})

    def choice(delta: dict[str, str], finish: str | None = None) -> list[Any]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]

    found: list[Any] = [chunk(choice({"role": "assistant", "content": ""}))]
    for delta in deltas:
        found.append(
            chunk(choice({"content": delta})) if isinstance(delta, str) else event(delta) if delta.__class__ is dict
            else delta
        )  # fmt: skip
    found.append(chunk(choice({}, "stop")))
    if usage:
        count = sum(isinstance(delta, str) for delta in deltas)
        found.append(chunk([], usage={"prompt_tokens": 9, "completion_tokens": count, "total_tokens": 9 + count}))
    return [*found, b"data: [DONE]\n\n"]


def event(document: Any, name: str = "") -> bytes:
    """One event with this document."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def whole(path: str) -> str:
    """A whole answer on the route that ends in `path`."""
    usage = {"prompt_tokens": 9, "total_tokens": 12}
    tokens = {"input_tokens": 9, "output_tokens": 3}
    said = {"output_text": "Hello."}
    if path.endswith("/chat/completions"):
        return completion()
    if path.endswith("/completions"):
        choice = {"index": 0, "text": "Hello.", "finish_reason": "stop"}
        done = {"id": "c1", "object": "text_completion", "model": "m", "choices": [choice]}
        return json.dumps({**done, "usage": {**usage, "completion_tokens": 3}})
    if path.endswith("/embeddings"):
        vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
        return json.dumps({"object": "list", "model": "m", "data": [vector], "usage": usage})
    if path.endswith("/responses"):
        message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello."}]}
        done = {"id": "r1", "object": "response", "status": "completed", "model": "m", "output": [message], **said}
        return json.dumps({**done, "usage": {**tokens, "total_tokens": 12}})
    if path.endswith("/count_tokens"):
        return json.dumps({"input_tokens": 9, "context_management": {"original_input_tokens": 9}})
    if path.endswith("/messages"):
        content = [{"type": "text", "text": "Hello."}]
        done = {"id": "m1", "type": "message", "role": "assistant", "model": "m", "content": content}
        return json.dumps({**done, "stop_reason": "end_turn", "usage": tokens})
    return completion()


def streamed(path: str) -> list[Any]:
    """A streamed answer on the route that ends in `path`, as items of `stream` in faults.py with `bare`."""
    if path.endswith("/responses"):
        done = {"type": "response.completed", "response": json.loads(whole(path))}
        created = {"type": "response.created", "response": {"id": "r1", "status": "in_progress"}}
        spoken = [{"type": "response.output_text.delta", "delta": text} for text in ("Hel", "lo")]
        listed: list[dict[str, Any]] = [created, *spoken, done]
        return [event({**one, "sequence_number": n}, one["type"]) for n, one in enumerate(listed)]
    if path.endswith("/messages"):
        start = {"type": "message_start", "message": {"id": "m1", "usage": {"input_tokens": 9, "output_tokens": 0}}}
        deltas = [
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
            for text in ("Hel", "lo")
        ]
        end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}
        named: list[dict[str, Any]] = [start, {"type": "ping"}, *deltas, end, {"type": "message_stop"}]
        return [event(one, one["type"]) for one in named]
    if path.endswith("/completions") and not path.endswith("/chat/completions"):
        choices = [{"index": 0, "text": text, "finish_reason": None} for text in ("Hel", "lo")]
        chunks = [{"id": "c1", "object": "text_completion", "model": "m", "choices": [one]} for one in choices]
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
        last = {"id": "c1", "object": "text_completion", "model": "m", "choices": [], "usage": usage}
        return [*(event(one) for one in (*chunks, last)), b"data: [DONE]\n\n"]
    return events(["Hel", "lo", " wörld"])


def pieces_of(script: dict[str, Any]) -> Iterator[Any] | None:
    """The body in pieces and pauses; None where it is sent whole."""
    if "stream" in script:
        listed = script["stream"]
        listed = listed if script.get("bare") else events(listed)
        return (event(one) if isinstance(one, dict) else coded(one) for one in listed)
    if "chunks" in script:
        return (coded(one) for one in script["chunks"])
    if "endless" in script:
        piece, times = b"x" * script["endless"], script.get("times")
        return iter(lambda: piece, None) if times is None else (piece for _ in range(times))
    return None


def coded(piece: Any) -> Any:
    """Text as bytes; anything else as it is."""
    return piece.encode() if isinstance(piece, str) else piece
