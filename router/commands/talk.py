"""`chat`: talk to the running Headgate, and see which model answered and why."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from router import keeper
from router.commands.context import ConfigOption, Stop, console, not_running, open_context, plain
from router.commands.keys import existing_first_key


def chat(
    text: Annotated[str, typer.Argument(help="What to say; without it, a conversation begins.")] = "",
    model: Annotated[str, typer.Option(help="A model, a lane (private, cheap, frontier) or auto.")] = "auto",
    key: Annotated[str, typer.Option(envvar="HEADGATE_KEY", help="Key to use instead of the first one.")] = "",
    config: ConfigOption = None,
) -> None:
    """Say something and see the answer as it comes, with the model that gave it and the reason.

    Example: headgate chat "What is a headgate?"
    """
    context, out = open_context(config), console()
    running = keeper.running(context.home)
    if running is None:
        raise Stop(not_running(context.home))
    key = key or existing_first_key(context.home)
    if not (key.isascii() and key.isprintable()):
        raise Stop("the key holds characters that no key has; copy it again")
    if text:
        asyncio.run(_turn(running, key, model, [{"role": "user", "content": text}], out))
        return
    if not out.is_terminal:
        raise Stop('say something: headgate chat "Hello"')
    _converse(running, key, model, out)


def _converse(running: keeper.Running, key: str, model: str, out: Console) -> None:
    """Turn after turn until an empty line, Ctrl-D or Ctrl-C. A turn that fails is forgotten, and one may go on."""
    out.print("Type and press Enter; an empty line ends it.")
    messages: list[dict[str, Any]] = []
    try:
        while said := out.input("> "):
            messages.append({"role": "user", "content": said})
            try:
                answer = asyncio.run(_turn(running, key, model, messages, out))
            except Stop as failed:
                out.print(f"{failed}", style="red", soft_wrap=True)
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": answer})
    except (EOFError, KeyboardInterrupt):
        out.print()


async def _turn(running: keeper.Running, key: str, model: str, messages: list[dict[str, Any]], out: Console) -> str:
    """Send the conversation, print the answer as it comes, and give it back. Raises Stop on an error."""
    from router.upstream.connection import Address, Bounds, Connections, Deadlines, UpstreamError

    body = orjson.dumps({"model": model, "messages": messages, "stream": True})
    headers = [("content-type", "application/json"), ("authorization", f"Bearer {key}")]
    connections = Connections(Deadlines(), Bounds())
    said: list[str] = []
    try:
        address = Address.parse(running.url, ca_file=running.ca_file)
        response = await connections.post(address, "/v1/chat/completions", headers, body)
        if response.status != 200:
            wrong = _message(await response.read())
            raise Stop(f"{wrong} Give another with --key." if response.status == 401 else wrong)
        tail = b""
        async for data in response.chunks():
            *lines, tail = (tail + data).split(b"\n")
            for thought, piece in map(_piece, lines):
                if thought:
                    out.print(plain(thought), end="", style="dim", soft_wrap=True)
                if piece:
                    said.append(piece)
                    out.print(plain(piece), end="", soft_wrap=True)
    except UpstreamError as failed:
        raise Stop(f"{running.url} did not answer: {failed}; see: headgate status") from failed
    finally:
        await connections.close()
    found = response.headers
    why = f"{found.get('x-headgate-model')} ({found.get('x-headgate-place')}): {found.get('x-headgate-reason')}"
    out.print(f"\n— {why}", style="dim", soft_wrap=True)
    out.print(f"  more: headgate explain --request {found.get('x-request-id')}", style="dim", soft_wrap=True)
    return "".join(said)


def _piece(line: bytes) -> tuple[str, str]:
    """The reasoning and the answer's text in one line of the stream. Raises Stop for an error event."""
    if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
        return "", ""
    try:
        event = orjson.loads(line[5:])
        if "error" in event:
            raise Stop(str(event["error"]["message"]))
        delta = event["choices"][0]["delta"] if event.get("choices") else {}
        return str(delta.get("reasoning") or delta.get("reasoning_content") or ""), str(delta.get("content") or "")
    except (ValueError, KeyError, TypeError, IndexError) as broken:
        raise Stop(f"the answer cannot be read: {line[:80].decode(errors='replace')}") from broken


def _message(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:300]
