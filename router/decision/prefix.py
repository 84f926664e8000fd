"""How a prompt begins: an ask's body → the chain of its beginnings, each as a keyed hash. Pure.

An engine keeps what it has read of a prompt, for the next one that begins alike. A chain names the same beginnings:
at each message's end and, inside a long text, at places that are the same for every text. Nothing of it leaves this
process, and it begins with the team, since engines keep prompts apart by team (`cache_salt` in `upstream/sending.py`).

The hash is Python's own of texts (SipHash with a key of the process), which takes a sixth of the time of BLAKE2. It
only says where a prompt may be answered sooner: two texts with one hash would cost that much and tell nobody anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from router.records import Ask, Caller, Candidate, Chain, Route

HEAD: dict[Route, tuple[str, ...]] = {
    "chat/completions": ("tools", "documents", "chat_template_kwargs", "reasoning_effort"),
    "completions": (),
    "responses": ("tools", "chat_template_kwargs", "reasoning"),
    "messages": ("tools", "chat_template_kwargs", "thinking"),
}
"""Fields that a template may write before the first message; the routes on which engines keep prompts."""
SYSTEM: dict[Route, str] = {"responses": "instructions", "messages": "system"}
"""The field that holds what in chat completions is the first message."""
TURNS: dict[Route, str] = {"completions": "prompt", "responses": "input"}
"""The field of the prompt, where it is not `messages`."""
LEAST = 256
"""Bytes: what an engine reads in no time is not looked for. vLLM keeps blocks of 16 tokens, about 64 bytes."""
MOST = 64
"""Beginnings in a chain: the first half and the last half of them, so that a long conversation's next turn still has
those of its last one, and another conversation that begins alike the first ones."""
SINGLY = 512
"""Pieces that are looked at one by one, and so many PARTS of a message; the rest is one: tiny ones cost the most."""
PARTS = 64
BLOCK = 1024
"""Characters after which a long text has its first beginning inside; see `_places`."""
OPENING = 512
"""Characters of an opening's text that name a conversation which its caller has not named."""


def chain(ask: Ask, team: str, secret: str) -> Chain | None:
    """The beginnings of the ask's prompt; None where there is nothing that an engine would keep.

    `secret`: of this process, so that nobody can tell which texts have one hash.
    """
    if ask.size < LEAST or ask.route not in HEAD:
        return None
    mark, size = hash((secret, team)), 0
    hashes: list[int] = []
    sizes: list[int] = []
    for found, length in _pieces(ask.route, ask.body):
        mark = hash((mark, found))
        size += length
        hashes.append(mark)
        sizes.append(size)
    if not size:
        return None
    if len(hashes) > MOST:
        half = MOST // 2
        hashes, sizes = hashes[:half] + hashes[-half:], sizes[:half] + sizes[-half:]
    return Chain(tuple(hashes), tuple(sizes), ask.size)


def by_session(ask: Ask, caller: Caller, candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates in the order in which the ask's session would have them: each worker finds the same one.

    Each is drawn by the session and its own name (rendezvous hashing), so one that goes away moves its own sessions.
    """
    if ask.session is not None:
        said = f"{caller.key}\0{ask.session}\0"
    else:
        said = "\0".join((caller.team, "", *_opening(ask.route, ask.body), ""))
    session = hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8)

    def draw(candidate: Candidate) -> bytes:
        drawn = session.copy()
        drawn.update(candidate.endpoint.name.encode())
        return drawn.digest()

    return sorted(candidates, key=draw)


def _opening(route: Route, body: Mapping[str, Any]) -> Iterator[str]:
    """The texts of the first two messages: mostly the system text and what was first asked."""
    system = body.get(SYSTEM[route]) if route in SYSTEM else None
    turns = body.get(TURNS.get(route, "messages"))
    for turn in [system, *(turns[:2] if isinstance(turns, list) else [turns])]:
        text = turn.get("content") if isinstance(turn, dict) else turn
        if isinstance(text, list) and text and isinstance(text[0], dict):
            text = text[0].get("text")
        if isinstance(text, str):
            yield text[:OPENING]


def _pieces(route: Route, body: Mapping[str, Any]) -> list[tuple[object, int]]:
    """What a prompt is made of, one after the other: something that can be hashed, and its bytes."""
    head = [body[name] for name in HEAD[route] if body.get(name) is not None]
    found = [_whole(head)] if head else []
    if route in SYSTEM and (system := body.get(SYSTEM[route])) is not None:
        found += _texts("system", system)
    turns = body.get(TURNS.get(route, "messages"))
    if route == "completions" or not isinstance(turns, list):
        return found + _texts("", turns)
    for number, turn in enumerate(turns):
        if len(found) >= SINGLY:
            found.append(_whole(turns[number:]))
            break
        if not isinstance(turn, dict) or "content" not in turn:
            found.append(_whole(turn))
            continue
        content, role = turn["content"], turn.get("role")
        if type(content) is str and type(role) is str and len(content) <= BLOCK:  # nearly always
            found.append(((role, content), _size(content)))
        else:
            found += _texts(str(role), content)
        if len(turn) > 2:
            more = {name: value for name, value in turn.items() if name not in ("role", "content")}
            found.append(_whole(more))
    return found


def _texts(role: str, content: object) -> list[tuple[object, int]]:
    """A text, or a list of parts of which some are texts, in pieces that end at the same places in every text."""
    if isinstance(content, list) and len(content) <= PARTS and all(isinstance(part, dict) for part in content):
        found = []
        for part in content:
            text = part.get("text")
            found += _texts(role, text) if isinstance(text, str) else [_whole(part)]
        return found
    if not isinstance(content, str):
        return [_whole(content)]
    pieces: list[tuple[object, int]] = []
    begun = 0
    for place in _places(len(content)):
        piece = content[begun:place]
        pieces.append(((role, piece), _size(piece)))
        begun = place
    return pieces


def _places(length: int) -> Iterator[int]:
    """Where a text's pieces end: after 1024 characters, then ever further apart, so that a text of any length has few.

    1024, 2048, 3072, 4096, 6144, 8192, 12288 and so on, and the text's own end.
    """
    place, step = BLOCK, BLOCK
    while place < length:
        yield place
        if place >= 4 * step:
            step *= 2
        place += step
    yield length


def _size(text: str) -> int:
    """Its bytes."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _whole(found: object) -> tuple[object, int]:
    """Anything else, as the JSON it is sent as."""
    raw = orjson.dumps(found)
    return raw, len(raw)
