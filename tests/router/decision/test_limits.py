"""How much one request may ask for: every cap holds at its edge, and each refusal says what to do about it."""

from __future__ import annotations

from typing import Any

import pytest

from router.decision.dialects import compiled
from router.decision.limits import check, check_stored
from router.errors import BadRequest
from router.records import Route
from router.scanner.reading import read
from tests.fakes.asking import ask

WEATHER = {"type": "object", "properties": {"city": {"type": "string", "pattern": "^[A-Z]"}}}


def function(name: str = "f", **changed: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": WEATHER, **changed}}


def form(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


def tool_schema(schema: Any) -> dict[str, Any]:
    return {"tools": [function(parameters=schema)]}


FINE: list[tuple[Route, dict[str, Any]]] = [
    ("chat/completions", {"n": 8}),
    ("chat/completions", {"n": None, "stop": None, "tools": None, "response_format": None}),
    ("chat/completions", {"stop": "a"}),
    ("chat/completions", {"stop": ["a" * 256] * 16}),
    ("chat/completions", {"tools": [function(f"f{n}") for n in range(128)]}),
    ("chat/completions", {"tools": [function("a-b_C9" + "x" * 58)]}),
    ("chat/completions", {"tools": [{"type": "custom", "custom": {"name": "note"}}, {"function": {"name": "f"}}]}),
    ("chat/completions", {"functions": [{"name": "f", "parameters": WEATHER}]}),
    ("messages", {"tools": [{"name": "mcp__" + "x" * 123, "input_schema": WEATHER, "cache_control": {"type": "x"}}]}),
    ("responses", {"tools": [{"type": "function", "name": "shell", "parameters": WEATHER, "strict": False},
                             {"type": "custom", "name": "note"},
                             {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]}]}),
    ("responses", {"background": False, "store": True}),
    ("embeddings", {"encoding_format": "float"}),
    ("embeddings", {"encoding_format": "base64"}),
    ("chat/completions", form(deep(32))),
    ("chat/completions", form({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}})),
    ("chat/completions", form({"properties": {"type": {"type": "string"}, "pattern": {"const": {"type": "odd"}}}})),
    ("chat/completions", form({"enum": [{"type": "any", "pattern": "("}]})),
    ("chat/completions", form({"type": ["string", "null"], "pattern": r"^(?!x)\p{L}+$"})),
    ("chat/completions", {"structured_outputs": {"regex": "[a-z]{1,20}"}}),
    ("completions", {"prompt": ["a"] * 2048}),
    ("completions", {"prompt": [1] * 5000}),
]  # fmt: skip


@pytest.mark.parametrize(("route", "body"), FINE)
def test_what_clients_send_passes(route: Route, body: dict[str, Any]) -> None:
    check(ask("m", route, **body))


PROVIDERS_OWN: list[dict[str, Any]] = [
    {"type": "mcp", "server_label": "x", "server_url": "https://x.example/", "require_approval": "never"},
    {"type": "web_search"},
    {"type": "web_search_preview", "function": {"name": "f"}},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "openrouter:web_fetch", "parameters": {}},
    {"type": "file_search", "vector_store_ids": ["vs_1"]},
    {"type": "builtin_function", "function": {"name": "$web_search"}},
    {"type": ["function"], "function": {"name": "f"}},
    {"googleSearch": {}},
    {"urlContext": {}},
    {},
]
BAD: list[tuple[str, Route, dict[str, Any], str]] = [
    ("js-013", "chat/completions", {"n": 9}, "n"),
    ("js-013", "chat/completions", {"n": 1_000_000}, "n"),
    ("js-013", "completions", {"best_of": 10**18}, "best_of"),
    ("js-013", "completions", {"prompt": ["a"] * 2049}, "prompt"),
    ("js-013", "embeddings", {"input": [[1]] * 2049}, "input"),
    ("js-016", "chat/completions", {"stop": ["a"] * 17}, "stop"),
    ("js-016", "chat/completions", {"stop": ["a"] * 10_000}, "stop"),
    ("js-016", "chat/completions", {"stop": "a" * 257}, "stop"),
    ("js-016", "chat/completions", {"stop": ""}, "stop"),
    ("js-016", "chat/completions", {"stop": ["a", 1]}, "stop"),
    ("js-016", "chat/completions", {"stop": {"a": 1}}, "stop"),
    ("js-016", "messages", {"stop_sequences": [""]}, "stop_sequences"),
    ("js-017", "chat/completions", form(deep(33)), "response_format"),
    ("js-017", "chat/completions", form({"$ref": "http://x.example/a.json"}), "response_format"),
    ("js-017", "chat/completions", form({"items": {"$dynamicRef": "file:///etc/passwd"}}), "response_format"),
    ("js-017", "chat/completions", form({"pattern": "("}), "response_format"),
    ("js-017", "chat/completions", form({"patternProperties": {"[": {}}}), "response_format"),
    ("js-017", "chat/completions", form({"pattern": "a" * 2001}), "response_format"),
    ("js-017", "chat/completions", {"structured_outputs": {"regex": "(((a{1,900}){1,900}){1,900}){1,900}"}},
     "structured_outputs"),
    ("js-017", "chat/completions", {"structured_outputs": {"json": '{"$ref": "http://x.example/"}'}},
     "structured_outputs"),
    ("js-017", "responses", {"text": {"format": {"type": "json_schema", "schema": {"$ref": "http://x"}}}}, "text"),
    ("js-017", "messages", {"output_config": {"format": {"type": "json_schema", "schema": deep(40)}}},
     "output_config"),
    ("js-020", "chat/completions", {"tools": [function(f"f{n}") for n in range(129)]}, "tools"),
    ("js-020", "chat/completions", {"tools": {"a": 1}}, "tools"),
    ("js-020", "chat/completions", {"tools": ["f"]}, "tools[0]"),
    ("js-020", "chat/completions", {"tools": [function("a\r\nb")]}, "tools[0].name"),
    ("js-020", "chat/completions", {"tools": [function("a\n")]}, "tools[0].name"),
    ("js-020", "chat/completions", {"tools": [function("x" * 65)]}, "tools[0].name"),
    ("js-020", "chat/completions", {"tools": [function(), function(" ")]}, "tools[1].name"),
    ("js-020", "chat/completions", {"functions": [{"name": "a b"}]}, "functions[0].name"),
    ("js-020", "chat/completions", tool_schema({"type": "objekt"}), "tools"),
    ("js-020", "chat/completions", tool_schema({"properties": {"a": {"type": ["string", 1]}}}), "tools"),
    ("js-020", "chat/completions", tool_schema({"properties": {"a": {"pattern": "*"}}}), "tools"),
    ("js-020", "messages", {"tools": [{"name": "f", "input_schema": {"type": "any"}}]}, "tools"),
    ("tools", "messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
    ("tools", "responses", {"tools": [{"type": "web_search"}]}, "tools[0]"),
    ("tools", "responses", {"tools": [{"type": "mcp", "server_url": "https://x.example/"}]}, "tools[0]"),
    ("tools", "responses", {"tools": [{"type": ["function"], "name": "f"}]}, "tools[0]"),
    ("tools", "responses", {"tools": [{"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}}]},
     "tools[0]"),
    ("tools", "responses", {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "computer"}]}]},
     "tools[0].tools[0]"),
    *(("tools", "chat/completions", {"tools": [function(), tool]}, "tools[1]") for tool in PROVIDERS_OWN),
    ("tools", "chat/completions", {"functions": [{"type": "web_search"}]}, "functions[0]"),
    ("js-025", "responses", {"background": True}, "background"),
    *(("encoding", "embeddings", {"encoding_format": one}, "encoding_format")
      for one in ("bytes", "bytes_only", "BASE64", "", 1, ["float"], {})),
]  # fmt: skip


@pytest.mark.parametrize(("route", "body", "param"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_asks_too_much_is_refused_in_one_sentence(route: Route, body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check(ask("m", route, **body))
    error = refused.value
    assert (error.status, error.param) == (400, param)
    assert error.message.endswith(".")
    assert len(error.message) < 200
    assert "a" * 50 not in error.message and "web_search" not in error.message, "it quotes nothing"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (form({"description": "x" * 70_000}), "schema_too_large"),
        ({"structured_outputs": {"grammar": "x" * 70_000}}, "schema_too_large"),
        ({"tools": [function(description="x" * 300_000)]}, "tools_too_large"),
    ],
)
def test_bytes_are_counted_where_the_whole_request_has_as_many(body: dict[str, Any], code: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check(ask("m", size=400_000, **body))
    assert refused.value.code == code


def test_a_large_request_with_a_small_schema_passes() -> None:
    check(ask("m", size=5_000_000, **form(WEATHER), tools=[function()]))


def test_a_schema_of_any_depth_costs_no_stack() -> None:
    with pytest.raises(BadRequest, match="32 levels"):
        check(ask("m", **form(deep(50_000))))
    check(ask("m", tools=[function(parameters=deep(5_000))]))


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("responses", {"input": [{"type": "item_reference", "id": "msg_of_somebody"}]}),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file_1"}]}]}),
        ("responses", {"input": [{"type": "function_call_output", "output": [
            {"type": "input_image", "file_id": "f"}]}]}),
        ("messages", {"messages": [{"role": "user", "content": [
            {"type": "document", "source": {"type": "file", "file_id": "file_1"}}]}]}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [
            {"type": "image", "source": {"type": "file", "file_id": "file_1"}}]}]}]}),
    ],
)  # fmt: skip
def test_js_025_nothing_stored_can_be_named(route: Route, body: dict[str, Any]) -> None:
    asked = ask("m", route, **body)
    with pytest.raises(BadRequest) as refused:
        check_stored(asked, read(asked.body))
    assert refused.value.code == "not_stored"


FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": WEATHER}}


@pytest.mark.parametrize(
    ("route", "body", "expected"),
    [
        ("chat/completions", {}, False),
        ("chat/completions", {"response_format": {"type": "json_object"}}, False),
        ("chat/completions", {"response_format": FORM}, True),
        ("chat/completions", {"structured_outputs": {"regex": "a"}}, True),
        ("responses", {"text": {"format": {"type": "json_schema", "schema": WEATHER}}}, True),
        ("chat/completions", {"tools": [function()]}, False),
        ("chat/completions", {"tools": [function()], "tool_choice": "auto"}, False),
        ("chat/completions", {"tools": [function()], "tool_choice": "required"}, True),
        ("chat/completions", {"tools": [function()], "tool_choice": {"type": "function"}}, True),
        ("messages", {"tools": [{"name": "f"}], "tool_choice": {"type": "auto"}}, False),
        ("messages", {"tools": [{"name": "f"}], "tool_choice": {"type": "any"}}, True),
    ],
)
def test_what_an_engine_has_to_compile(route: Route, body: dict[str, Any], expected: bool) -> None:
    assert bool(compiled(route, body)) is expected
    if expected:
        assert compiled(route, body) != compiled(route, {**body, "structured_outputs": {"regex": "b"}})
