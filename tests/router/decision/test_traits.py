"""What a request needs, read from its body; and what is no count is refused before money is held for it."""

from __future__ import annotations

from typing import Any

import pytest

from router.decision.limits import check
from router.decision.traits import choices, describe, prompts
from router.errors import BadRequest
from router.records import Ask, Route, Traits
from serving.catalogue import LANES, Site
from tests.fakes.asking import ask, caller, searched

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "f"}}


def traits(asked: Ask) -> Traits:
    check(asked)  # as the pipeline does, before anything is read
    return describe(asked, caller(), searched(asked.body), Site())


def with_part(part: dict[str, Any]) -> Ask:
    return ask(messages=[{"role": "user", "content": [{"type": "text", "text": "Look"}, part]}])


@pytest.mark.parametrize(
    ("body", "needs"),
    [
        ({}, set()),
        ({"tools": [TOOL]}, {"tools"}),
        ({"functions": [{"name": "f"}]}, {"tools"}),
        ({"tools": []}, set()),
        ({"tools": None}, set()),
        ({"response_format": {"type": "json_schema"}}, {"schema"}),
        ({"response_format": {"type": "json_object"}}, {"schema"}),
        ({"response_format": {"type": "text"}}, set()),
        ({"response_format": "odd"}, set()),
        ({"structured_outputs": {"regex": "a"}}, {"schema"}),
        ({"logprobs": True}, {"logprobs"}),
        ({"logprobs": False}, set()),
        ({"logprobs": 0}, {"logprobs"}),
        ({"logprobs": 5}, {"logprobs"}),
    ],
)
def test_abilities(body: dict[str, Any], needs: set[str]) -> None:
    assert traits(ask(**body)).needs == {"chat", *needs}


@pytest.mark.parametrize(
    ("part", "sees"),
    [
        (IMAGE, True),
        ({"type": "input_image", "image_url": "data:image/png;base64,AAAA"}, True),
        ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, True),
        ({"image_url": "data:image/png;base64,AAAA"}, True),
        ({"type": "input_audio", "input_audio": {}}, False),
        ({"type": "text", "text": "an image_url in words"}, False),
    ],
)
def test_a_picture_needs_eyes(part: dict[str, Any], sees: bool) -> None:
    assert ("vision" in traits(with_part(part)).needs) is sees


@pytest.mark.parametrize("messages", ["text", [], [None], [{"content": None}], [{"content": [None, "x", 1]}], {"a": 1}])
def test_odd_messages_do_no_harm(messages: Any) -> None:
    assert traits(ask(messages=messages)).needs == {"chat"}


@pytest.mark.parametrize(
    ("route", "need"),
    [("chat/completions", "chat"), ("completions", "completions"), ("embeddings", "embeddings")],
)
def test_each_route_needs_its_ability(route: Route, need: str) -> None:
    assert traits(ask("m", route)).needs == {need}


@pytest.mark.parametrize(
    ("route", "body", "parameters"),
    [
        (
            "chat/completions",
            {"temperature": 0, "top_p": None, "user": "x", "store": True, "n": 1},
            {"temperature", "n"},
        ),
        ("chat/completions", {"stream": True}, set()),
        ("chat/completions", {"stream": False, "made_up": 1}, {"made_up"}),
        ("chat/completions", {"prompt": "x", "input": "y"}, {"prompt", "input"}),
        ("completions", {"messages": []}, {"messages"}),
        ("embeddings", {"stream": True}, {"stream"}),
        ("embeddings", {"stream": False}, set()),
    ],
)
def test_parameters_are_the_fields_that_change_the_answer(
    route: Route, body: dict[str, Any], parameters: set[str]
) -> None:
    assert traits(ask("m", route, **body)).parameters == parameters


@pytest.mark.parametrize("model", [*LANES, "auto", "near"])
def test_a_name_is_a_lane_a_model_or_a_free_choice(model: str) -> None:
    found = traits(ask(model))
    assert found.lane == (model if model in LANES else None)
    assert found.named == ("near" if model == "near" else None)


@pytest.mark.parametrize(
    ("route", "body", "tokens"),
    [
        ("chat/completions", {}, None),
        ("chat/completions", {"n": 5}, None),
        ("chat/completions", {"max_tokens": 10}, 10),
        ("chat/completions", {"max_completion_tokens": 10}, 10),
        ("chat/completions", {"max_tokens": 10, "max_completion_tokens": 30}, 30),
        ("chat/completions", {"max_tokens": 30, "max_completion_tokens": 10}, 30),
        ("chat/completions", {"max_tokens": None, "n": None}, None),
        ("chat/completions", {"max_tokens": 10, "n": 3}, 30),
        ("completions", {"max_tokens": 10, "n": 3, "prompt": ["a", "b"]}, 60),
        ("completions", {"max_tokens": 10, "prompt": [1, 2, 3]}, 10),
        ("completions", {"max_tokens": 10, "prompt": [[1], [2], [3]]}, 30),
        ("completions", {"max_tokens": 0}, 0),
        ("embeddings", {}, 0),
    ],
)
def test_output_tokens_are_those_of_all_choices(route: Route, body: dict[str, Any], tokens: int | None) -> None:
    assert traits(ask("m", route, **body)).output_tokens == tokens


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n"])
@pytest.mark.parametrize("value", [-1, -(10**9), "10", 10.0, True, False, [10], {"a": 1}, ""])
def test_what_is_no_count_is_refused_by_name(name: str, value: Any) -> None:
    # Counted as nothing it would be a hold of nothing; counted below nothing it would free a budget.
    with pytest.raises(BadRequest) as refused:
        traits(ask(**{name: value}))
    assert (refused.value.status, refused.value.param) == (400, name)


@pytest.mark.parametrize("value", [0, -1])
def test_no_choices_at_all_are_refused(value: int) -> None:
    with pytest.raises(BadRequest, match="at least 1"):
        traits(ask(n=value))


@pytest.mark.parametrize("options", ["include_usage", ["include_usage"], 1, True])
def test_stream_options_must_be_an_object(options: Any) -> None:
    with pytest.raises(BadRequest) as refused:
        traits(ask(stream=True, stream_options=options))
    assert refused.value.param == "stream_options"


def test_prompts_and_choices_are_counted() -> None:
    assert prompts(ask()) == choices(ask()) == 1
    assert prompts(ask("m", "embeddings", input=["a", "b", "c"])) == 3
    assert choices(ask("m", "completions", prompt=["a", "b"], n=4)) == 8
    assert prompts(ask("m", "completions", prompt=[])) == 1


def test_the_prompt_is_never_more_tokens_than_bytes() -> None:
    assert traits(ask(size=12_345)).prompt_tokens == 12_345


SEEN = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}


@pytest.mark.parametrize(
    ("route", "body", "needs"),
    [
        ("responses", {}, set()),
        ("responses", {"tools": [{"type": "function", "name": "f"}]}, {"tools"}),
        ("responses", {"text": {"format": {"type": "json_schema", "schema": {}}}}, {"schema"}),
        ("responses", {"text": {"format": {"type": "text"}, "verbosity": "low"}}, set()),
        ("responses", {"text": "odd"}, set()),
        ("responses", {"reasoning": {"effort": "high"}}, set()),
        ("responses", {"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"logprobs"}),
        ("responses", {"include": ["reasoning.encrypted_content"]}, set()),
        ("responses", {"input": [{"role": "user", "content": [SEEN]}]}, {"vision"}),
        ("responses", {"input": [{"type": "function_call_output", "output": [SEEN]}]}, {"vision"}),
        ("responses", {"input": [None, "x", {"output": "image"}]}, set()),
        ("messages", {}, set()),
        ("messages", {"tools": [{"name": "f", "input_schema": {}}]}, {"tools"}),
        ("messages", {"output_config": {"format": {"type": "json_schema", "schema": {}}}}, {"schema"}),
        ("messages", {"output_config": {"effort": "low"}}, set()),
        ("messages", {"thinking": {"type": "adaptive"}}, set()),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, {"vision"}),
        ("messages", {"messages": [{"role": "user", "content": [
            {"type": "tool_result", "content": [{"type": "image", "source": {}}]}]}]}, {"vision"}),
    ],
)  # fmt: skip
def test_abilities_in_the_other_dialects(route: Route, body: dict[str, Any], needs: set[str]) -> None:
    assert traits(ask("m", route, **body)).needs == {"chat", *needs}


@pytest.mark.parametrize(
    ("route", "body", "tokens"),
    [
        ("responses", {}, None),
        ("responses", {"max_output_tokens": 10}, 10),
        ("responses", {"max_tokens": 10}, None),
        ("messages", {"max_tokens": 10}, 10),
    ],
)
def test_the_output_limit_has_its_name_in_each_dialect(route: Route, body: dict[str, Any], tokens: int | None) -> None:
    assert traits(ask("m", route, **body)).output_tokens == tokens


def test_what_a_dialect_lets_pass_is_no_parameter() -> None:
    assert traits(ask("m", "responses", client_metadata={}, store=True, instructions="s")).parameters == frozenset()
    assert traits(ask("m", "messages", betas=["a"], cache_control={}, system="s")).parameters == frozenset()
    assert traits(ask("m", "messages", made_up=1, prompt="x")).parameters == {"made_up", "prompt"}


def test_pictures_by_address_are_refused_in_every_dialect() -> None:
    part = {"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}}
    with pytest.raises(BadRequest) as refused:
        traits(ask("m", "messages", messages=[{"role": "user", "content": [part]}]))
    assert (refused.value.code, refused.value.param) == ("media_url_not_allowed", "messages")
    with pytest.raises(BadRequest) as refused:
        traits(ask("m", "responses", input=[{"content": [{"type": "input_image", "image_url": "https://x.example"}]}]))
    assert (refused.value.code, refused.value.param) == ("media_url_not_allowed", "input")
