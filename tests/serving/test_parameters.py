"""Which body fields a request may carry: what reaches the shared engine, and what a hosted model is said to honour."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import get_args

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase, CompletionCreateParamsStreaming

from serving import parameters
from serving.parameters import (
    BOOKKEEPING,
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    HARMLESS,
    MESSAGES,
    OPENAI_CHAT,
    REFUSED,
    RESPONSES,
    RESPONSES_ALONE_REFUSED,
    accepted,
)
from serving.terms import Route

FIELDS = """
import json
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingChatRequest, EmbeddingCompletionRequest
print(json.dumps({
    "CHAT": [*ChatCompletionRequest.model_fields],
    "COMPLETIONS": [*CompletionRequest.model_fields],
    "EMBEDDINGS": [*EmbeddingChatRequest.model_fields, *EmbeddingCompletionRequest.model_fields],
    "RESPONSES": [*ResponsesRequest.model_fields],
    "MESSAGES": [*AnthropicMessagesRequest.model_fields],
    "COUNT_TOKENS": [*AnthropicCountTokensRequest.model_fields],
}))
"""


ROUTES = get_args(Route)


@pytest.mark.parametrize("route", ROUTES)
def test_no_route_takes_a_refused_field(route: Route) -> None:
    assert not accepted(route, "vllm") & REFUSED.keys()
    assert not accepted(route, frozenset(REFUSED)) & REFUSED.keys()


FORBIDDEN = """
api_base base_url api_key custom_llm_provider extra_headers proxy organization litellm_params
chat_template tokenizer add_generation_prompt cache_salt prompt_embeds multi_modal_data mm_processor_kwargs
kv_transfer_params priority lora_request request_id
"""
"""JS-011: the destination and its key. JS-018: what acts on the engine that all share."""


@pytest.mark.parametrize("name", FORBIDDEN.split())
def test_a_field_that_reaches_beyond_the_request_is_refused_with_its_reason(name: str) -> None:
    assert len(REFUSED[name]) > 20
    assert "_" not in REFUSED[name], "the reason is for people"


def test_a_template_cannot_come_in_through_the_arguments_of_the_template() -> None:
    assert "chat_template_kwargs" in CHAT
    assert {"chat_template", "tokenize", "tokenizer_kwargs"} <= parameters.REFUSED_TEMPLATE_KEYS
    assert "enable_thinking" not in parameters.REFUSED_TEMPLATE_KEYS


def test_the_openai_fields_are_those_of_the_official_client() -> None:
    known = {*CompletionCreateParamsBase.__annotations__, *CompletionCreateParamsStreaming.__annotations__}
    assert known == OPENAI_CHAT


def test_bookkeeping_fields_never_change_an_answer() -> None:
    assert BOOKKEEPING <= OPENAI_CHAT
    assert not BOOKKEEPING & {"temperature", "tools", "messages", "response_format", "seed", "web_search_options"}


def test_what_codex_and_claude_code_send_is_taken_or_left_out() -> None:
    """The fields of their requests as their sources have them; none of them may be an error."""
    codex = """
    model instructions input tools tool_choice parallel_tool_calls reasoning store stream include service_tier
    prompt_cache_key text client_metadata
    """
    claude_code = """
    model messages system tools tool_choice metadata max_tokens thinking temperature stream context_management
    output_config stop_sequences betas
    """
    assert set(codex.split()) <= RESPONSES | BOOKKEEPING | HARMLESS["responses"]
    assert set(claude_code.split()) <= MESSAGES | BOOKKEEPING | HARMLESS["messages"]


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "previous_input_messages"])
def test_nothing_of_an_earlier_request_can_be_named(name: str) -> None:
    assert name in REFUSED
    assert "prompt" in RESPONSES_ALONE_REFUSED


def test_what_is_left_out_as_harmless_is_nothing_an_engine_would_take() -> None:
    assert not HARMLESS["responses"] & (RESPONSES | REFUSED.keys())
    assert not HARMLESS["messages"] & (MESSAGES | REFUSED.keys())
    assert not HARMLESS["messages/count_tokens"] & (COUNT_TOKENS | REFUSED.keys())


def test_whoever_sends_a_whole_message_to_be_counted_is_not_refused() -> None:
    """All but `stream`, which would ask for another form of answer."""
    assert MESSAGES - {"stream"} <= COUNT_TOKENS | BOOKKEEPING | HARMLESS["messages/count_tokens"]


def test_a_hosted_model_takes_what_its_entry_lists_and_what_every_model_takes() -> None:
    taken = accepted("chat/completions", frozenset({"temperature"}))
    assert taken == {"model", "messages", "stream", "max_tokens", "max_completion_tokens", "temperature"}
    assert accepted("embeddings", frozenset({"dimensions"})) == {"model", "input", "dimensions"}


@pytest.mark.engine
def test_the_fields_are_those_of_the_engine(engine_python: Path) -> None:
    """After an upgrade of vLLM this shows what came and went; sort new fields into the sets or into REFUSED."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([engine_python, "-c", FIELDS], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = {name: set(fields) for name, fields in json.loads(done.stdout.splitlines()[-1]).items()}
    ours = {"CHAT": CHAT, "COMPLETIONS": COMPLETIONS, "EMBEDDINGS": EMBEDDINGS, "RESPONSES": RESPONSES,
            "MESSAGES": MESSAGES}  # fmt: skip
    refused = REFUSED.keys() | RESPONSES_ALONE_REFUSED.keys()
    gone = {name: sorted(ours[name] - theirs[name]) for name in ours}
    new = {name: sorted(theirs[name] - ours[name] - refused) for name in ours}
    nothing: dict[str, list[str]] = {name: [] for name in ours}
    assert (gone, new) == (nothing, nothing)
