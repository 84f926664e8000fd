"""What one model is sent: nothing beyond what was held, counted, taken and reported."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decision.outgoing import body_for, output_limit
from router.records import Route
from serving.parameters import BOOKKEEPING
from tests.fakes.asking import MESSAGES, ask, candidate, hosted, local

NEAR, FAR = candidate(local()), candidate(hosted())


def test_the_model_is_called_by_its_own_name_and_the_rest_is_as_it_came() -> None:
    body, dropped = body_for(ask("auto", temperature=0.5, tools=[{"a": 1}], max_tokens=9), NEAR)
    assert body == {
        "model": "near", "messages": MESSAGES, "temperature": 0.5, "tools": [{"a": 1}], "max_tokens": 9,
    }  # fmt: skip
    assert dropped == ()


def test_an_attached_server_is_sent_the_name_it_uses_itself() -> None:
    assert body_for(ask(), candidate(local(), served="org/near-7b"))[0]["model"] == "org/near-7b"


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ({}, {"max_tokens": 64}),
        ({"max_tokens": None}, {"max_tokens": 64}),
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_tokens": 0}, {"max_tokens": 0}),
        ({"max_completion_tokens": 7}, {"max_completion_tokens": 7}),
        ({"max_tokens": 7, "max_completion_tokens": 9}, {"max_tokens": 7, "max_completion_tokens": 9}),
    ],
)
def test_the_limit_that_was_held_is_the_limit_that_is_sent(body: dict[str, Any], sent: dict[str, int]) -> None:
    found, _ = body_for(ask(**body), NEAR)
    assert {name: value for name, value in found.items() if name.startswith("max_")} == sent


def test_an_embedding_is_sent_no_limit() -> None:
    assert body_for(ask("near", "embeddings"), NEAR)[0] == {"model": "near", "input": "Hi"}


@pytest.mark.parametrize(
    ("size", "context", "limit"),
    [(80, 0, 64), (8100, 0, 46), (8190, 0, 1), (10**6, 0, 1), (80, 60, 20), (80, 40, 1)],
)
def test_the_default_limit_leaves_room_for_the_prompt(size: int, context: int, limit: int) -> None:
    chosen = candidate(local(), context=context)
    assert output_limit(ask(size=size), chosen) == limit
    assert body_for(ask(size=size), chosen)[0]["max_tokens"] == limit


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"include_usage": None, "continuous_usage_stats": True},
         {"include_usage": True, "continuous_usage_stats": True}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_a_stream_always_ends_with_its_usage(options: Any, sent: dict[str, Any], route: Route) -> None:
    asked = ask("near", route, stream=True, stream_options=options)
    before = dict(asked.body)
    assert body_for(asked, NEAR)[0]["stream_options"] == sent
    assert asked.body == before  # what the caller wanted is still known when the answer is relayed


def test_without_a_stream_there_are_no_stream_options() -> None:
    assert "stream_options" not in body_for(ask(), NEAR)[0]


def test_bookkeeping_a_model_does_not_take_is_left_out_and_named() -> None:
    asked = ask(metadata={"a": "b"}, store=True, user="x", service_tier="auto", safety_identifier=None)
    near, near_dropped = body_for(asked, NEAR)
    far, far_dropped = body_for(asked, FAR)
    assert near_dropped == ("metadata", "service_tier", "store")
    assert near["user"] == "x"  # the engine takes it
    assert far_dropped == ("metadata", "service_tier", "store", "user")
    assert not BOOKKEEPING & far.keys()


def test_bookkeeping_a_model_takes_is_sent() -> None:
    body, dropped = body_for(ask(metadata={"a": "b"}), candidate(hosted(parameters={"metadata"})))
    assert (body["metadata"], dropped) == ({"a": "b"}, ())


@given(st.dictionaries(st.text(min_size=1, max_size=10), st.integers() | st.text() | st.none(), max_size=6))
def test_no_field_with_a_value_is_ever_dropped_silently(more: dict[str, Any]) -> None:
    fields = {k: v for k, v in more.items() if k not in ("model", "messages", "stream", "stream_options")}
    for chosen in (NEAR, FAR):
        asked = ask()
        asked = asked._replace(body={**asked.body, **fields})
        body, dropped = body_for(asked, chosen)
        missing = {name for name, value in asked.body.items() if value is not None} - body.keys()
        assert missing == set(dropped) <= BOOKKEEPING


def test_what_a_route_may_drop_is_dropped_and_named_and_never_what_is_refused() -> None:
    asked = ask(temperature=0.5, api_base="http://x")
    body, dropped = body_for(asked, candidate(hosted(parameters=set())), frozenset({"temperature", "api_base"}))
    assert "temperature" not in body
    assert dropped == ("temperature",)
    assert "api_base" in body  # the rule `honours` refuses it before anything is sent


def test_a_model_that_takes_no_stream_options_is_sent_none() -> None:
    body, dropped = body_for(
        ask("far", stream=True, stream_options={"include_usage": True}), candidate(hosted(parameters=set()))
    )
    assert "stream_options" not in body
    assert dropped == ("stream_options",)


def test_responses_are_never_kept_and_the_caller_is_told_where_it_wished_it() -> None:
    body, dropped = body_for(ask("near", "responses", store=True, stream=True), NEAR)
    assert body == {"model": "near", "input": "Hi", "stream": True, "store": False, "max_output_tokens": 64}
    assert dropped == ("store",)
    for wish in ({}, {"store": False}):
        body, dropped = body_for(ask("near", "responses", **wish), NEAR)
        assert (body["store"], dropped) == (False, ())


def test_what_codex_sends_for_its_own_provider_is_left_out_and_named() -> None:
    asked = ask("near", "responses", client_metadata={"a": "b"}, stream_options={"include_obfuscation": False},
                prompt_cache_key="k", include=["reasoning.encrypted_content"], max_output_tokens=9)  # fmt: skip
    body, dropped = body_for(asked, NEAR)
    assert dropped == ("client_metadata", "stream_options")
    assert body == {"model": "near", "input": "Hi", "prompt_cache_key": "k", "max_output_tokens": 9, "store": False,
                    "include": ["reasoning.encrypted_content"]}  # fmt: skip


def test_what_claude_code_sends_for_its_own_provider_is_left_out_and_named() -> None:
    asked = ask("near", "messages", system="s", context_management={"edits": []}, service_tier="auto",
                thinking={"type": "adaptive"}, metadata={"user_id": "u"}, stream=True)  # fmt: skip
    body, dropped = body_for(asked, NEAR)
    assert dropped == ("context_management", "service_tier")
    assert body == {"model": "near", "messages": MESSAGES, "system": "s", "thinking": {"type": "adaptive"},
                    "metadata": {"user_id": "u"}, "stream": True, "max_tokens": 64}  # fmt: skip


@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_what_is_harmless_in_another_dialect_is_not_left_out_here(route: Route) -> None:
    assert body_for(ask("near", route, client_metadata={"a": "b"}, inference_geo="eu"), NEAR)[1] == ()


THOUGHT = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4", "reasoning": "Let me see", "reasoning_content": "Let me see"},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "It is."}]},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm"}], "tool_calls": [{"id": "c1"}]},
    {"role": "user", "content": "Why?", "reasoning": "a user's own field stays"},
]
PLAIN = [
    THOUGHT[0],
    {"role": "assistant", "content": "4"},
    {"role": "assistant", "content": [{"type": "text", "text": "It is."}]},
    {"role": "assistant", "content": "", "tool_calls": [{"id": "c1"}]},
    THOUGHT[4],
]


@pytest.mark.parametrize("model", ["auto", "cheap", "near"])
def test_what_another_model_thought_is_not_sent_to_a_hosted_one(model: str) -> None:
    """An overflow in the middle of a conversation: its answers so far were a local model's."""
    asked = ask(model, messages=THOUGHT)
    assert body_for(asked, FAR)[0]["messages"] == PLAIN
    assert asked.body["messages"] == THOUGHT  # the ask itself is tried elsewhere too
    assert body_for(asked, NEAR)[0]["messages"] == THOUGHT


def test_a_model_that_was_named_gets_its_own_thoughts_back() -> None:
    assert body_for(ask("far", messages=THOUGHT), FAR)[0]["messages"] == THOUGHT


@pytest.mark.parametrize("messages", [MESSAGES, "no list", [1, None], [], [{"role": "assistant", "content": "4"}]])
def test_a_history_without_thoughts_is_passed_on_as_it_is(messages: Any) -> None:
    assert body_for(ask(messages=messages), FAR)[0]["messages"] is messages
