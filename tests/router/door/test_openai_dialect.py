"""The dialect: what is renamed, added and left out on the way to a provider."""

from __future__ import annotations

from typing import Any

import pytest

from router.door.providers.openai import address, translate
from serving.catalogue import Model, Provider

MODEL = Model(
    name="big", place="hosted", lanes=("frontier",), context=10, output=5, provider="far", provider_model="big-1"
)


@pytest.mark.parametrize(
    ("wanted", "path", "given", "sent"),
    [
        ("max_tokens", "chat/completions", {"max_completion_tokens": 5}, {"max_tokens": 5}),
        ("max_completion_tokens", "chat/completions", {"max_tokens": 5}, {"max_completion_tokens": 5}),
        ("max_tokens", "chat/completions", {"max_tokens": 9, "max_completion_tokens": 5}, {"max_tokens": 5}),
        ("max_completion_tokens", "completions", {"max_tokens": 5}, {"max_tokens": 5}),
        ("max_tokens", "embeddings", {"input": "x"}, {"input": "x"}),
        ("max_tokens", "chat/completions", {"top_p": None, "headgate": {}, "n": 1}, {"n": 1}),
        ("max_tokens", "completions", {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ("max_tokens", "chat/completions", {"stream": False}, {"stream": False}),
    ],
)
def test_translation(wanted: Any, path: str, given: dict[str, Any], sent: dict[str, Any]) -> None:
    body = {"model": "big", **given}
    assert translate(body, path, MODEL, Provider(output_limit=wanted)) == {"model": "big-1", **sent}
    assert body == {"model": "big", **given}


def test_the_address_is_the_base_and_the_path() -> None:
    for base in ("https://api.example/v1", "https://api.example/v1/"):
        assert address("embeddings", Provider(base_url=base)) == "https://api.example/v1/embeddings"
