"""What `up` prints when it is done: where to ask, with which key, and a line to paste."""

from __future__ import annotations

import json
import shlex

from rich.console import Console

from router import keeper
from router.commands.choosing import DEMO
from router.commands.context import Context
from router.commands.keys import NO_FIRST_KEY, first_key


def welcome(context: Context, running: keeper.Running, out: Console, names: list[str] | None = None) -> None:
    """The endpoint, a key with its data class, and a curl line that works when pasted."""
    key, text, made = first_key(context)
    out.print()
    if names == [DEMO]:
        out.print("The demo model answers with NOISE: it is tiny and its weights are random. For a real model:")
        out.print("    headgate down; headgate up --model qwen3.5-0.8b     (needs a model hub)", soft_wrap=True)
        out.print()
    if made == NO_FIRST_KEY:
        out.print("A first key was made.")
    elif made:
        out.print(f"T{made[1:]}: a new one was made.")
    out.print(f"endpoint  {running.url}/v1", soft_wrap=True)
    out.print(f"key       {text}", soft_wrap=True)
    out.print(f"          data class {key.data_class.name}, team {key.team}; to change it:", soft_wrap=True)
    out.print(f"          headgate keys set {key.id} --data-class public|internal|private|secret", soft_wrap=True)
    out.print()
    out.print(curl_line(running, text, names[0] if names else "auto"), soft_wrap=True)
    out.print()


def curl_line(running: keeper.Running, key: str, model: str) -> str:
    """A command that asks something, for a shell."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    args = ["curl", *(["--cacert", running.ca_file] if running.ca_file else []), f"{running.url}/v1/chat/completions"]
    args += ["-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return shlex.join(args)
