"""The dialect of providers that follow OpenAI's API: the body, the address, the headers and the errors. Pure.

Knows nothing of permits, sockets or files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from serving.catalogue import Model, Provider

LIMITS = ("max_tokens", "max_completion_tokens")
MESSAGE_LIMIT = 500
"""Characters of a provider's error message that are passed on; a longer one is replaced."""
_WORD = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")


def translate(body: Mapping[str, Any], path: str, model: Model, provider: Provider) -> dict[str, Any]:
    """The body as the provider takes it. Fields without a value are left out, and so is `headgate`."""
    sent = {name: value for name, value in body.items() if value is not None and name != "headgate"}
    sent["model"] = model.provider_model
    if isinstance(messages := sent.get("messages"), list):
        sent["messages"] = [_unnamed(message) for message in messages]
    # The old completions API knows only the old name, whatever the provider's chat API wants.
    wanted = provider.output_limit if path == "chat/completions" else "max_tokens"
    limits = [sent.pop(name) for name in LIMITS if name in sent]
    if limits:
        # Both given: the lower one, so that no more is paid than either allows.
        sent[wanted] = min(limits, key=lambda n: n if isinstance(n, int) else float("inf"))
    takes_options = model.parameters == "vllm" or "stream_options" in model.parameters
    if sent.get("stream") is True and path != "embeddings" and takes_options:
        options = sent.get("stream_options")
        sent["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return sent


def _unnamed(message: Any) -> Any:
    """A message whose files have lost their names: what people call a file is text that nobody reads or asked for."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list) or not any(isinstance(part, dict) and "file" in part for part in content):
        return message
    return {**message, "content": [_nameless(part) for part in content]}


def _nameless(part: Any) -> Any:
    file = part.get("file") if isinstance(part, dict) else None
    if not isinstance(file, dict) or "filename" not in file:
        return part
    pdf = str(file.get("file_data", ""))[:40].lower().startswith("data:application/pdf")
    return {**part, "file": {**file, "filename": "file.pdf" if pdf else "file"}}


def address(path: str, provider: Provider) -> str:
    """The full URL of `path`."""
    return f"{provider.base_url.rstrip('/')}/{path}"


def headers(key: str, stream: bool, provider: Provider) -> dict[str, str]:
    """All headers that go out; no other one ever does, whatever the router was sent."""
    found = {
        "content-type": "application/json",
        "accept": "text/event-stream" if stream else "application/json",
        "accept-encoding": "identity",
        "user-agent": "headgate",
    }
    if key:
        found[provider.key_header] = f"Bearer {key}" if provider.key_header == "authorization" else key
    return found


def error(status: int, body: bytes, key: str, name: str) -> bytes:
    """A provider's error answer as OpenAI's envelope, with nothing in it that a caller should not see."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    inner = parsed.get("error") if isinstance(parsed, dict) else None
    inner = inner if isinstance(inner, dict) else {}
    message = inner.get("message")
    if not isinstance(message, str) or not 0 < len(message) < MESSAGE_LIMIT or (key and key in message):
        message = f"the provider {name} answered with status {status}"
    fields = {field: _word(inner.get(field), key) for field in ("type", "param", "code")}
    fields["type"] = fields["type"] or ("invalid_request_error" if status < 500 else "server_error")
    fields["code"] = fields["code"] or "provider_error"
    return orjson.dumps({"error": {"message": message, **fields}})


def _word(value: Any, key: str) -> str | None:
    """The value where it is one plain word, as codes are."""
    good = isinstance(value, str) and _WORD.fullmatch(value) and not (key and key in value)
    return value if good else None
