"""What is wrong with a request, as an engine says it and as its caller reads it. The bodies are those of vLLM 0.32."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.upstream.wording import LONGEST, Said, cleaned, place, said, sentence


def vllm(message: str, param: str | None = None) -> bytes:
    kind = "BadRequestError"
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": 400}}).encode()


def anthropic(message: str) -> bytes:
    return json.dumps({"type": "error", "error": {"type": "BadRequestError", "message": message}}).encode()


UNPARSED = (
    "1 validation error:\n  {'type': 'float_parsing', 'loc': 'body.temperature', 'msg': 'Input should be a valid "
    "number, unable to parse string as a number', 'input': 'warm'}"
)
BRANCHES = (
    "237 validation errors:\n  {'type': 'string_type', 'loc': 'body.input', 'msg': 'Input should be a valid string', "
    "'input': '<list of 1 items>'}\n  {'type': 'missing', 'loc': 'body.input.0.EasyInputMessageParam.content', 'msg': "
    "'Field required', 'input': '<dict of 1 items>'}\n  {'type': 'missing', 'loc': 'body.input.0.Message.content', "
    "'msg': 'Field required', 'input': '<dict of 1 items>'}\n  {'type': 'literal_error', 'loc': "
    "'body.input.0.Message.type', 'msg': \"Input should be 'message'\", 'input': 'nothing', 'ctx': {'expected': "
    "\"'message'\"}}\n  {'type': 'missing', 'loc': 'body.input.0.ResponseOutputMessageParam.id', 'msg': 'Field "
    "required', 'input': '<dict of 1 items>'}\n  ...and 227 more errors"
)
RAISED = (
    "1 validation error:\n  {'type': 'value_error', 'loc': 'body.max_tokens', 'msg': 'Value error, max_tokens must be "
    "positive', 'input': '0', 'ctx': {'error': ValueError('max_tokens must be positive')}}"
)
PRINTED = (
    "2 validation errors for ValidatorIterator\n0.ChatCompletionContentPartTextParam.text\n  Field required "
    "[type=missing, input_value={'type': 'text'}, input_type=dict]\n    For further information visit "
    "https://errors.pydantic.dev/2.14/v/missing\n0.ChatCompletionContentPartImageParam.type\n  Input should be "
    "'image_url' [type=literal_error, input_value='text', input_type=str]\n    For further information visit "
    "https://errors.pydantic.dev/2.14/v/literal_error"
)
GRAMMAR = (
    'Grammar error: at 1(8): invalid regex "(" (in regex): regex parse error:\n    (\n    ^\nerror: unclosed group'
)
OLD = (
    "[{'type': 'missing', 'loc': ('body', 'function-wrap[log()]', 'messages', 0, 'content'), 'msg': 'Field required'}]"
)


@pytest.mark.parametrize(
    ("body", "told", "param"),
    [
        (
            vllm(UNPARSED, "body.temperature"),
            "temperature: Input should be a valid number, unable to parse string as a number.", "temperature",
        ),
        (
            vllm("temperature must be non-negative, got -3.0. (parameter=temperature, value=-3.0)", "temperature"),
            "temperature must be non-negative, got -3.0.", "temperature",
        ),
        (
            vllm(BRANCHES, "body.input"),
            "input: Input should be a valid string; input.0.content: Field required; "
            "input.0.type: Input should be 'message'; and 1 more.", "input",
        ),
        (vllm(RAISED, "body.max_tokens"), "max_tokens: max_tokens must be positive.", "max_tokens"),
        (vllm(PRINTED), "0.text: Field required; 0.type: Input should be 'image_url'.", None),
        (vllm(GRAMMAR), GRAMMAR.replace("\n    ", " ").replace("\n", " "), None),
        (vllm("Cannot apply chat template to an empty conversation."), "Cannot apply chat template to an empty "
         "conversation.", None),
        (anthropic("max_tokens must be at least 1, got -1. (parameter=max_tokens, value=-1)"),
         "max_tokens must be at least 1, got -1.", None),
        (vllm(OLD), "messages.0.content: Field required.", None),
        (b'{"detail":[{"type":"missing","loc":["body","messages",0,"content"],"msg":"Field required"}]}',
         "messages.0.content: Field required.", "messages.0.content"),
        (b'{"detail":"Too much"}', "Too much", None),
        (b'{"error":"model x not found"}', "model x not found", None),
    ],
)  # fmt: skip
def test_an_engines_fault_finding_becomes_a_sentence(body: bytes, told: str, param: str | None) -> None:
    found = said(body)
    assert (sentence(found.message), found.param) == (told, param)
    assert not any(sign in sentence(found.message) for sign in ("{'", "'loc'", "[type=", "://", "Param."))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"3", b'{"error":3}', b'{"detail":[3]}', b'{"detail":{}}'])
def test_what_says_nothing_is_nothing(body: bytes) -> None:
    assert said(body) == Said()


def test_only_a_path_that_is_not_there_is_no_route() -> None:
    assert said(b'{"detail":"Not Found"}').no_route
    assert not said(vllm("The model `other` does not exist.", "model")).no_route


def test_openais_own_words_and_code_stay() -> None:
    error = {"message": "Unknown parameter: 'x'.", "type": "invalid_request_error", "param": "x", "code": "unknown"}
    assert said(json.dumps({"error": error}).encode()) == Said("Unknown parameter: 'x'.", "unknown", "x")


@pytest.mark.parametrize(
    ("said_there", "told"),
    [
        ("Ask http://10.0.0.7:8000/v1 or 192.168.1.4:9000 again", "Ask … or … again"),
        ("in /usr/lib/python3/site.py\nline 7", "in … line 7"),
        ("a\r\nb\x00c\x1b[31md", "a b c [31md"),
        ('Traceback (most recent call last):\n  File "x.py", line 1', ""),
        ("max_tokens must be at least 1, got 0.", "max_tokens must be at least 1, got 0."),
        ("use text/plain or a/b", "use text/plain or a/b"),
    ],
)
def test_an_upstreams_words_lose_what_is_its_own(said_there: str, told: str) -> None:
    assert cleaned(said_there) == told
    assert sentence(said_there) == told


@pytest.mark.parametrize(
    ("there", "here"),
    [("body.messages.0.content", "messages.0.content"), ("body", ""), ("tools[0].name", "tools[0].name"), (None, ""),
     (7, ""), ("x" * 301, ""), ("body.body", "body"), ("temperature", "temperature")],
)  # fmt: skip
def test_a_place_is_named_as_the_caller_wrote_it(there: Any, here: str) -> None:
    assert place(there) == here


@given(st.text(st.sampled_from("'\"\\{}()[]locmsgtype:, =\n0a."), max_size=400))
def test_no_words_make_it_fail_or_long(text: str) -> None:
    told = sentence(f"1 validation error:\n  {{'loc': '{text}")
    assert len(told) <= LONGEST
    assert "\n" not in told
    said(json.dumps({"error": {"message": text, "param": text}}).encode())
