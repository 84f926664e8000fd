"""Bodies that are too large, too deep, ambiguous or ask for what nobody may have: cases JS-* of the fault catalogue."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import ask
from tests.faults import wire
from tests.faults.cases import each
from tests.faults.conftest import MIB, FaultHouse
from tests.faults.line import Line
from tests.faults.test_client import SAID

SMALL = {"max_body_mb": 0.01}
LIMIT = int(0.01 * 2**20)


async def refused(
    house: FaultHouse,
    body: Any,
    *,
    status: tuple[int, ...] = (400,),
    code: str = "",
    data_class: str = "private",
    path: str = "/v1/chat/completions",
) -> wire.Outcome:
    """This body gets an error, and nobody behind the router hears of it."""
    before = house.asked()
    found = await house.tell(body, house.key(data_class), path)
    assert found.status in status, (found.status, found.body[:300])
    assert not code or found.code == code, found.error
    assert house.asked() == before, "it was sent on"
    assert len(found.body) < 2000, "an error is short, whatever was asked"
    return found


def sized(size: int) -> bytes:
    """A good body of exactly so many bytes."""
    empty = json.dumps(ask("small", user="")).encode()
    return json.dumps(ask("small", user="u" * (size - len(empty)))).encode()


# ---- size


async def test_js_002_the_limit_is_exact(house: FaultHouse) -> None:
    await house.start(router=SMALL)
    key = house.key()
    assert (await house.tell(sized(LIMIT), key)).status == 200
    found = await house.tell(sized(LIMIT + 1), key)
    assert (found.status, found.code) == (413, "request_too_large")
    assert house.asked() == 1


async def test_js_002_a_body_is_refused_by_what_it_says_before_it_comes(house: FaultHouse) -> None:
    await house.start(router=SMALL)
    head = wire.request(b"", house.key(), headers={"content-length": str(10**9)})
    async with Line(house) as line:
        await line.send(head)
        assert (await line.ended()).startswith(b"HTTP/1.1 413 ")


async def test_js_002_an_endless_body_is_cut_where_it_passes_the_limit(house: FaultHouse) -> None:
    await house.start(router={**SMALL, "body_timeout_s": 30})
    head = wire.request(b"", house.key()).replace(b"content-length: 0", b"transfer-encoding: chunked")
    async with Line(house) as line:
        await line.send(head)
        for _ in range(LIMIT // 1000 + 2):
            await line.send(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        assert (await line.ended(5)).startswith(b"HTTP/1.1 413 ")
    assert house.asked() == 0


async def test_js_002_a_length_that_lies_opens_no_second_request(house: FaultHouse) -> None:
    await house.start(router={"body_timeout_s": 0.4})
    key, body = house.key(), json.dumps(ask("small")).encode()
    short = wire.request(body, key, headers={"content-length": str(len(body) - 4)})
    async with Line(house) as line:  # four bytes are left over, and are no request
        await line.send(short)
        came = await line.ended()
    assert came.count(b"HTTP/1.1 4") == came.count(b"HTTP/1.1 ") == 2 or came.startswith(b"HTTP/1.1 400 ")
    long = wire.request(body, key, headers={"content-length": str(len(body) + 4)})
    async with Line(house) as line:  # four bytes never come
        await line.send(long)
        assert (await line.ended()).startswith(b"HTTP/1.1 408 ")
    async with Line(house) as line:
        await line.send(long)
        line.end_sending()
        await line.ended()
    assert house.asked() == 0


# ---- what two parsers could read differently

DEEP = {
    "arrays": lambda depth: b"[" * depth + b"]" * depth,
    "objects": lambda depth: b'{"a":' * depth + b"1" + b"}" * depth,
    "open": lambda depth: b"[" * depth,
    "mixed": lambda depth: b'[{"a":' * (depth // 2) + b"1" + b"}]" * (depth // 2),
}


@each([66, 1000, 100_000])
@each([*DEEP])
async def test_js_003_nesting_is_bounded(house: FaultHouse, kind: str, depth: int) -> None:
    await house.start()
    body = b'{"model":"small","messages":[{"role":"user","content":"a"}],"metadata":' + DEEP[kind](depth) + b"}"
    await refused(house, body, code="too_deep")


@each(["temperature", "seed", "metadata"])
@each(["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
async def test_js_005_what_is_no_number_is_refused(house: FaultHouse, number: str, field: str) -> None:
    await house.start()
    await refused(house, json.dumps(ask("small", **{field: "X"})).replace('"X"', number).encode(), code="invalid_json")


@each([str(2**64), str(-(2**63) - 1), "9" * 400, "9" * 5000, "-" + "1" * 4301])
async def test_js_006_numbers_beyond_64_bits_are_refused(house: FaultHouse, number: str) -> None:
    await house.start()
    await refused(house, json.dumps(ask("small", seed="X")).replace('"X"', number).encode(), code="invalid_json")


@each(["1.0", "0.1e1", "1e0", '"1"', "true", "-1", "1.5"])
@each(["n", "max_tokens"])
async def test_js_006_a_count_is_a_whole_number(house: FaultHouse, field: str, number: str) -> None:
    await house.start()
    found = await refused(house, json.dumps(ask("small", **{field: "X"})).replace('"X"', number).encode())
    assert found.error["param"] == field


@each([2**64 - 1, -(2**63), 0, 0.1, 1e-300])
async def test_js_006_a_number_that_fits_arrives_exactly(house: FaultHouse, number: float) -> None:
    await house.start()
    found = await house.tell(ask("small", seed=number), house.key())
    assert found.status == 200
    assert house.local.requests[-1].json()["seed"] == number


@each(["-0", "-0.0", "0e0", "-0e9"])
async def test_js_006_a_zero_is_a_zero_whatever_its_sign(house: FaultHouse, number: str) -> None:
    await house.start()
    for field in ("seed", "temperature"):
        found = await house.tell(json.dumps(ask("small", **{field: "X"})).replace('"X"', number).encode(), house.key())
        assert found.status == 200, found.error
        assert house.local.requests[-1].json()[field] == 0
    await refused(house, json.dumps(ask("small", n="X")).replace('"X"', number).encode())


PLAIN = '{"model":"small","messages":[{"role":"user","content":"X"}]}'
BYTES = {
    "invalid": PLAIN.encode().replace(b"X", b"\xff"),
    "overlong": PLAIN.encode().replace(b"X", b"\xc0\xaf"),
    "cut": PLAIN.encode().replace(b"X", b"\xf0\x9f\x98"),
    "coded-surrogate": PLAIN.encode().replace(b"X", b"\xed\xa0\x80"),
    "surrogate": PLAIN.replace("X", "\\ud800").encode(),
    "turned": PLAIN.replace("X", "\\udc00\\ud800").encode(),
    "utf-16": PLAIN.encode("utf-16"),
    "utf-16-be": PLAIN.encode("utf-16-be"),
    "utf-32": PLAIN.encode("utf-32"),
    "bom": b"\xef\xbb\xbf" + PLAIN.encode(),
    "in-a-key": PLAIN.encode().replace(b'"model"', b'"m\xff":1,"model"'),
    "latin-1": PLAIN.replace("X", "é").encode("latin-1"),
    "twice": PLAIN.replace('"model"', '"model":"big","model"').encode(),
    "twice-escaped": PLAIN.replace('"model"', '"mod\\u0065l":"big","model"').encode(),
    "trailing": PLAIN.encode() + b"{}",
    "comment": PLAIN.encode() + b"//",
    "list": b"[]",
    "empty": b"",
    "nul": b"\0" + PLAIN.encode(),
}


@each(BYTES)
async def test_js_007_only_strict_utf_8_json_is_read(house: FaultHouse, body: bytes) -> None:
    await house.start()
    found = await refused(house, body)
    assert found.code in ("invalid_json", "duplicate_field")


# ---- what a caller may not say

OPERATORS = {
    "api_base": "http://127.0.0.1:9/v1",
    "base_url": "http://evil.example",
    "api_key": "sk-x",
    "custom_llm_provider": "x",
    "extra_headers": {"a": "b"},
    "extra_body": {"model": "big"},
    "proxy": "http://evil.example",
    "proxies": {},
    "organization": "o",
    "litellm_params": {"api_base": "http://evil.example"},
    "api_version": "1",
    "timeout": 1,
    "fallbacks": ["big"],
    "router": {},
}


@each([*SAID])
@each([*OPERATORS])
async def test_js_011_where_a_request_goes_is_not_the_callers_to_say(house: FaultHouse, name: str, route: str) -> None:
    await house.start()
    body = {"model": "small", **SAID[route], name: OPERATORS[name]}
    found = await house.tell(body, house.key(), f"/v1/{route}")
    assert (found.status, house.asked()) == (400, 0)
    if not route.startswith("messages"):
        assert (found.code, found.error["param"]) == ("unsupported_parameter", name)


@each(
    [
        {"metadata": {"privacy": "public", "guardrails": [], "disable_guardrails": True, "no-log": True}},
        {"headgate": {"data_class": "public"}},
        {"user": "data_class=public"},
        {"prompt_cache_key": "public"},
    ]
)
async def test_js_012_what_a_body_says_of_privacy_only_raises(house: FaultHouse, more: dict[str, Any]) -> None:
    await house.start()
    await refused(house, ask("big", **more), status=(403,), code="data_class_not_cleared")
    await refused(house, ask("big", headgate={"data_class": "secret"}), status=(403,), data_class="public")


@each(["privacy", "no-log", "no_log", "guardrails", "disable_guardrails", "data_class", "private"])
async def test_js_012_a_field_nobody_knows_is_refused(house: FaultHouse, name: str) -> None:
    await house.start()
    await refused(house, ask("small", **{name: "public"}), code="unsupported_parameter")
    await refused(house, ask("small", headgate={name: "public"})) if name != "data_class" else None


@each(
    [
        {"n": 1_000_000},
        {"n": 9},
        {"n": 0},
        {"n": -1},
        {"best_of": 2},
        {"best_of": 1_000_000},
        {"n": 2**63, "max_tokens": 2**63},
        {"n": 8, "max_tokens": 2**61},
        {"use_beam_search": True},
    ]
)
async def test_js_013_many_answers_are_refused(house: FaultHouse, more: dict[str, Any]) -> None:
    await house.start()
    await refused(house, ask("small", **more))
    await refused(house, {"model": "small", "prompt": "a", **more}, path="/v1/completions")


async def test_js_013_eight_answers_are_made(house: FaultHouse) -> None:
    await house.start()
    assert (await house.tell(ask("small", n=8, max_tokens=8), house.key())).status == 200


@each([["s"] * 10_000, "s" * 2**20, "", [""], ["s", 5], 5, {"a": 1}, ["s" * 257], [str(n) for n in range(17)]])
async def test_js_016_stops_are_few_and_short(house: FaultHouse, stop: Any) -> None:
    await house.start()
    assert (await refused(house, ask("small", stop=stop))).error["param"] == "stop"


async def test_js_016_sixteen_stops_pass(house: FaultHouse) -> None:
    await house.start()
    assert (await house.tell(ask("small", stop=["s" * 256] * 16), house.key())).status == 200


def form(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


def deep(levels: int) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": deep(levels - 1)}} if levels else {"type": "string"}


SCHEMAS: dict[str, dict[str, Any]] = {
    "large": form(
        {"type": "object", "properties": {f"p{n}": {"type": "string", "description": "d" * 100} for n in range(2000)}}
    ),
    "enum": form({"enum": ["x" * 1000] * 10_000}),
    "deep": form(deep(31)),
    "far-ref": form({"$ref": "http://evil.example/schema.json"}),
    "file-ref": form({"properties": {"a": {"$ref": "file:///etc/passwd"}}}),
    "relative-ref": form({"$ref": "other.json#/a"}),
    "dynamic-ref": form({"$dynamicRef": "https://evil.example#a"}),
    "pattern": form({"type": "string", "pattern": "a" * 5000}),
    "broken-pattern": form({"type": "string", "pattern": "("}),
    "counted-pattern": form({"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"}),
    "type": form({"type": "nothing"}),
    "regex": {"structured_outputs": {"regex": "((a{1,1000}){1,1000}){1,1000}"}},
    "long-regex": {"structured_outputs": {"regex": "a" * 5000}},
    "grammar": {"structured_outputs": {"grammar": "root ::= " + "a" * 100_000}},
    "choice": {"structured_outputs": {"choice": ["x" * 1000] * 1000}},
    "as-text": {"structured_outputs": {"json": '{"$ref": "http://evil.example/schema.json"}'}},
}


@each(SCHEMAS)
async def test_js_017_a_form_for_the_answer_is_bounded(house: FaultHouse, more: dict[str, Any]) -> None:
    house.most_bytes = 80 * MIB  # 10 MB of schema, of which this test alone has three copies
    await house.start()
    await refused(house, ask("small", **more))


async def test_js_017_a_schema_that_refers_to_itself_passes_and_is_not_followed(house: FaultHouse) -> None:
    await house.start()
    schema = {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "same": {"$ref": "#/$defs/a"}},
        "$defs": {"a": {"$ref": "#/$defs/a"}},
    }
    assert (await house.tell(ask("small", **form(schema)), house.key())).status == 200


async def test_js_017_new_schemas_have_a_rate_for_each_key(house: FaultHouse) -> None:
    """The engine compiles each one; what it has compiled is free, and other keys are not held up."""
    await house.start(router={"schemas_per_minute": 3})
    key, schemas = house.key(), [form({"type": "object", "title": str(number)}) for number in range(5)]
    told = [await house.tell(ask("small", **one), key) for one in [*schemas[:3], schemas[0], *schemas[3:]]]
    assert [one.status for one in told] == [200, 200, 200, 200, 429, 429]
    assert told[-1].code == "rate_limit_exceeded"
    assert 0 < int(told[-1].headers["retry-after"]) <= 20
    assert house.asked() == 4, "it was sent on"
    assert (await house.tell(ask("small"), key)).status == 200
    assert (await house.tell(ask("small", **schemas[4]), house.key())).status == 200


async def test_js_017_a_new_schema_with_each_request_holds_nothing_up(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    for number in range(40):
        schema = {"type": "object", "properties": {f"p{number}": {"type": "string", "pattern": f"^(a|b){{{number}}}$"}}}
        assert (await house.tell(ask("small", **form(schema)), key)).status == 200


SLOW = {
    "spaces": ["\\s" * 1000],
    "many": [f"\\s{{1,99}}{number}" + "\\w" * 100 for number in range(40)],
    "letters": [f"^[\\p{{L}} ]{{1,{number}}}$" for number in range(100, 200)],
    "looks": ["(?=\\p{L}{50})" * 140],
}


@each(SLOW)
async def test_js_017_patterns_compile_within_a_budget(house: FaultHouse, patterns: list[str]) -> None:
    """Seconds of work each, in schemas that are small and flat: refused at once, wherever they stand."""
    await house.start()
    schema = {"type": "object", "properties": {f"p{n}": {"pattern": one} for n, one in enumerate(patterns)}}
    await refused(house, ask("small", **form(schema)), code="invalid_schema")
    await refused(house, ask("small", tools=[tool(parameters=schema)]), code="invalid_schema")
    half = {"properties": dict(list(schema["properties"].items())[::2])}  # type: ignore[attr-defined]
    rest = {"properties": dict(list(schema["properties"].items())[1::2])}  # type: ignore[attr-defined]
    await refused(house, ask("small", **form(half), tools=[tool(parameters=rest)]), code="invalid_schema")


ENGINES = {
    "chat_template": "{{ 7*7 }}",
    "tokenizer": "x",
    "add_generation_prompt": False,
    "cache_salt": "mine",
    "prompt_embeds": "AAAA",
    "multi_modal_data": {},
    "mm_processor_kwargs": {"a": 1},
    "media_io_kwargs": {},
    "kv_transfer_params": {},
    "priority": -1,
    "lora": "x",
    "lora_request": {"name": "x"},
    "request_id": "other",
    "vllm_xargs": {"a": 1},
    "use_beam_search": True,
    "guided_decoding_backend": "x",
}


@each([*SAID])
@each([*ENGINES])
async def test_js_018_what_acts_on_the_shared_engine_is_refused(house: FaultHouse, name: str, route: str) -> None:
    await house.start()
    body = {"model": "small", **SAID[route], name: ENGINES[name]}
    found = await house.tell(body, house.key(), f"/v1/{route}")
    assert (found.status, house.asked()) == (400, 0)


def tool(**changed: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, **changed}}


TOOLS: dict[str, Any] = {
    "many": [tool()] * 10_000,
    "129": [tool()] * 129,
    "described": [tool(description="d" * 2**20)],
    "pattern": [tool(parameters={"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}})],
    "type": [tool(parameters={"type": "object", "properties": {"a": {"type": "nothing"}}})],
    "crlf": [tool(name="a\r\nX-Evil: 1")],
    "empty-name": [tool(name="")],
    "long-name": [tool(name="a" * 65)],
    "space": [tool(name="a b")],
    "number": [5],
    "object": {"a": 1},
    "text": "f",
}


@each(TOOLS)
async def test_js_020_tools_are_bounded_and_of_their_form(house: FaultHouse, tools: Any) -> None:
    await house.start()
    body = json.dumps(ask("small", tools=tools)).encode()
    house.watch.excuse()
    await refused(house, body)


MODELS = [
    "m" * 2**20,
    "../../x",
    "openai/gpt",
    "small/../big",
    "SMALL",
    "small ",
    " small",
    "sm\u0430ll",
    "small\0",
    "%s%n",
    "small'; DROP TABLE events; --",
    "{{7*7}}",
    "*",
    ".*",
    "small.*",
    "auto/small",
    "sma\u200bll",
]


@each(MODELS)
async def test_js_021_a_model_is_looked_up_exactly(house: FaultHouse, model: str) -> None:
    await house.start()
    found = await refused(house, ask(model), status=(404,), code="model_not_found")
    assert found.error["param"] == "model"
    assert house.built is not None and house.built.store.healthy


@each([None, "", 5, ["small"], {"a": 1}, True])
async def test_js_021_a_model_is_a_text(house: FaultHouse, model: Any) -> None:
    await house.start()
    await refused(house, {**ask(), "model": model}, code="missing_field")


INERT = (
    "\x1b[31mred\x1b[0m \u202eesrever <script>alert(1)</script> ${jndi:ldap://evil} %n%s%x {{7*7}} {0.__class__} \x07"
)


async def test_js_024_text_is_inert_wherever_it_is_shown(
    house: FaultHouse, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    await house.start()
    key = house.key()
    for body in (ask(INERT), ask("small", user=INERT, metadata={INERT: INERT}), ask("small", **{INERT: 1})):
        found = await house.tell(
            body,
            key,
            headers={
                "x-headgate-session": INERT.encode("ascii", "ignore").decode().replace("\x1b", "").replace("\x07", "")
            },
        )
        assert found.status in (200, 400, 404)
        shown = str(found.headers) + (found.body.decode() if found.status != 200 else "")
        assert "\x1b" not in shown and "\x07" not in shown
        assert "49" not in found.headers.get("x-headgate-reason", "")
    out, err = capfd.readouterr()
    for text in (caplog.text, out, err):
        assert "\x1b[31m" not in text and "jndi" not in text
    assert not [event for events in house.rows().values() for event in events if "jndi" in str(event)]


STORED: dict[str, tuple[str, dict[str, Any]]] = {
    "previous": ("responses", {"previous_response_id": "resp_of_another"}),
    "conversation": ("responses", {"conversation": "conv_of_another"}),
    "item": ("responses", {"input": [{"type": "item_reference", "id": "msg_of_another"}]}),
    "file": ("responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-x"}]}]}),
    "stored-prompt": ("responses", {"prompt": {"id": "pmpt_of_another"}}),
    "background": ("responses", {"background": True}),
    "document": (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}]}]},
    ),
    "thread": ("chat/completions", {"thread": "thread_of_another"}),
    "batch": ("chat/completions", {"batch_id": "batch_of_another"}),
}


@each(STORED)
async def test_js_025_nothing_of_anothers_request_can_be_named(
    house: FaultHouse, route: str, more: dict[str, Any]
) -> None:
    await house.start()
    found = await house.tell({"model": "small", **SAID[route], **more}, house.key(), f"/v1/{route}")
    assert found.status in (400, 404)
    assert house.asked() == 0


@each(["/v1/responses/resp_x", "/v1/files/file-x", "/v1/batches/b", "/v1/threads/t/runs", "/v1/chat/completions/c"])
async def test_js_025_there_is_nothing_kept_to_fetch(house: FaultHouse, path: str) -> None:
    await house.start()
    sent = wire.request(b"", house.key(), path).replace(b"POST", b"GET", 1)
    assert (await house.send(sent)).status == 404


async def test_js_025_responses_are_not_stored(house: FaultHouse) -> None:
    await house.start()
    found = await house.tell({"model": "small", **SAID["responses"], "store": True}, house.key(), "/v1/responses")
    assert found.status in (200, 400)
    assert all(request.json()["store"] is False for request in house.local.requests)
