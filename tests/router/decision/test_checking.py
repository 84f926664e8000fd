"""An answer is held against its caller's schema: what fits, what does not, and what no schema makes the router do."""

from __future__ import annotations

import json
import secrets
import socket
from typing import Any

import pytest

from router.decision import checking
from router.decision.checking import checked
from router.records import Ask
from tests.fakes.asking import ask

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^[A-Z]"}, "age": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
                "right": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
            },
            "required": ["name"],
        }
    },
    "$ref": "#/$defs/tree",
}


def asking(schema: Any) -> Ask:
    return ask(response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}})


def body(*choices: dict[str, Any]) -> bytes:
    return json.dumps({"choices": list(choices)}).encode()


def said(text: str | None, finish: str = "stop", **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text, **more}, "finish_reason": finish}


def judged(schema: Any, value: Any) -> str | None:
    return checked(asking(schema), body(said(json.dumps(value))))


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        (said('{"city": "Rome", "age": 3}'), ""),
        (said(' \n{"city": "Rome"}\n'), ""),
        (said("Rome"), "choice 0: no JSON"),
        (said('```json\n{"city": "Rome"}\n```'), "choice 0: no JSON"),
        (said('{"city": "Ro', "length"), "choice 0: no JSON (cut at the output limit)"),
        (said(None, "length", reasoning_content="hm"), "choice 0: no text (cut at the output limit)"),
        (said(""), "choice 0: no text"),
        (said(None), "choice 0: no text"),
        (said('{"age": 3}'), "choice 0: the schema does not hold"),
        (said('{"city": "rome"}'), "choice 0: the schema does not hold"),
        (said('{"city": 1}'), "choice 0: the schema does not hold"),
        (said('{"city": "Rome", "x": 1}'), "choice 0: the schema does not hold"),
        (said('{"city": "Rome", "age": NaN}'), "choice 0: no JSON"),
        # No text was meant to come.
        (said(None, "tool_calls", tool_calls=[{"id": "1"}]), ""),
        (said(None, refusal="I will not."), ""),
    ],
)
def test_an_answer_fits_or_is_said_not_to(choice: dict[str, Any], why: str) -> None:
    assert checked(asking(CITY), body(choice)) == why


def test_every_choice_counts() -> None:
    good, bad = said('{"city": "Rome"}'), said("{}")
    assert checked(asking(CITY), body(good, good)) == ""
    assert str(checked(asking(CITY), body(good, bad))).startswith("choice 1: ")


@pytest.mark.parametrize("form", [None, "text", {"type": "json_object"}, {"type": "json_schema"}, {"type": []}])
def test_without_a_schema_there_is_nothing_to_judge(form: Any) -> None:
    asked = ask(response_format=form) if form is not None else ask()
    assert checked(asked, body(said("Hello"))) is None


@pytest.mark.parametrize("answer", [b"{", b"{}", b'{"choices": []}', b'{"choices": [1]}', b'{"error": "no"}'])
def test_what_is_no_completion_is_not_judged(answer: bytes) -> None:
    assert checked(asking(CITY), answer) is None


def test_the_reason_holds_no_word_of_the_answer_or_of_the_schema() -> None:
    word = f"canary{secrets.token_hex(4)}"
    schemas: list[Any] = [
        {"type": "object", "properties": {word: {"const": word}}, "required": [word]},
        {"enum": [word]},
        {"pattern": f"^{word}$"},
        {"propertyNames": {"pattern": f"^{word}$"}},
        {"type": "object", "additionalProperties": False, "patternProperties": {f"^x{word}": True}},
    ]
    for schema in schemas:
        for value in ({word: word + "."}, {f"{word}.": 1}, f"{word}.", [word]):
            reason = judged(schema, value)
            assert reason is not None
            assert word not in reason


# ---- schemas are the callers', and some callers are curious


@pytest.mark.parametrize("scheme", ["http", "https", "ftp"])
def test_no_schema_makes_the_router_connect(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"{scheme}://127.0.0.1:{listening.getsockname()[1]}"
        for schema in (
            {"$ref": f"{address}/schema.json"},
            {"$schema": f"{address}/meta"},
            {"$id": f"{address}/here", "$ref": "there.json"},
            {"$id": f"{address}/here", "properties": {"a": {"$ref": "/there#/x"}}},
            {"$dynamicRef": f"{address}/x"},
            {"properties": {"a": {"$id": f"{address}/in/", "items": {"$ref": "out"}}}},
        ):
            assert judged(schema, {"a": 1}) is None
        listening.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_the_library_fetches_nothing_even_where_a_reference_slips_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second lock: `offline`, tried with the first one open."""
    monkeypatch.setattr(checking, "_size", lambda _: (1, 0))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert judged({"$ref": f"http://127.0.0.1:{port}/"}, 1) is None
        listening.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_no_schema_reads_a_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "integer"}')
    for opened in (False, True):
        if opened:
            monkeypatch.setattr(checking, "_size", lambda _: (1, 0))
        assert judged({"$ref": path.as_uri()}, "no integer") is None
        assert judged({"$ref": str(path)}, "no integer") is None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"pattern": "("},
        {"pattern": "(?=ahead)b"},
        {"pattern": "(a{1000}){1000}"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "#/allOf/7", "allOf": [True]},
        {"$schema": "http://example.com/mine"},
        {"patternProperties": 5, "properties": {"a": []}},
        {"unevaluatedProperties": False},
        {"enum": list(range(checking.MOST_NODES))},
    ],
)
def test_a_schema_that_is_wrong_or_out_of_bounds_is_left_to_the_engine(schema: Any) -> None:
    assert judged(schema, {"a": 1}) is None


def doubling(levels: int, last: Any) -> dict[str, Any]:
    """A short schema that means the last part 2^levels times."""
    defs: dict[str, Any] = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": defs | {f"a{levels}": last}, "$ref": "#/$defs/a0"}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("levels", [16, 40])
@pytest.mark.parametrize("last", [{"type": "string"}, {"properties": {"a": {"$ref": "#/$defs/a0"}}, "type": "string"}])
def test_a_schema_that_would_take_hours_is_not_begun(levels: int, last: Any) -> None:
    """Sixteen levels that lead back into themselves took the library 80 seconds; one level is judged."""
    assert judged(doubling(levels, last), {"a": {"a": 1}}) is None
    hidden = {"properties": {"definitions": doubling(levels, last)["$defs"]}, "$ref": "#/properties/definitions/a0"}
    assert judged(json.loads(json.dumps(hidden).replace("$defs", "properties/definitions")), {"a": 1}) is None
    assert judged(doubling(1, last), {"a": {"a": 1}}) == "choice 0: the schema does not hold"


@pytest.mark.timeout(10)
@pytest.mark.parametrize("either", ["anyOf", "oneOf"])
def test_alternatives_that_lead_back_into_the_schema_take_no_longer_with_each_level(either: str) -> None:
    """To say what is wrong took the library a time that doubled with each level: 12 s at sixteen."""
    again = {"type": "array", "items": {"$ref": "#"}}
    schema = {either: [again, again, {"type": "string"}]}
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    assert judged(schema, deep) == "choice 0: the schema does not hold"


@pytest.mark.timeout(10)
def test_multiples_of_very_large_numbers_are_counted_as_what_they_cost() -> None:
    many = {"items": {"allOf": [{"multipleOf": 1e-300}] * 2400}}
    assert judged(many, [1e300] * 100) is None
    assert judged({"items": {"type": "number", "multipleOf": 0.5}}, [1.5, 2]) == ""


@pytest.mark.timeout(10)
def test_a_large_answer_is_not_held_against_a_large_schema() -> None:
    many = {"items": {"anyOf": [{"properties": {f"p{n}": {"type": "string"}}} for n in range(500)]}}
    assert judged(many, [1, 2]) == ""
    assert judged(many, [1] * 10_000) is None
    assert judged({"items": {"type": "string"}}, [1] * 10_000) == "choice 0: the schema does not hold"
    assert judged({"type": "string"}, "x" * checking.MOST_BYTES) is None


def test_schemas_that_people_write_are_judged() -> None:
    tree: Any = None
    for number in range(40):
        tree = {"name": f"n{number}", "left": tree, "right": {"name": "leaf"}}
    assert judged(TREE, tree) == ""
    tree["right"]["name"] = 7
    assert str(judged(TREE, tree)).startswith("choice 0: ")
    with_id = {"$id": "https://example.com/s.json", "$schema": "http://json-schema.org/draft-07/schema#", **CITY}
    assert judged(with_id, {"city": "Rome"}) == ""
    wide = {"type": "object", "properties": {f"p{n}": CITY for n in range(60)}}
    assert judged(wide, {"p3": {"city": "rome"}}) == "choice 0: the schema does not hold"


@pytest.mark.timeout(10)
def test_patterns_run_in_linear_time() -> None:
    assert judged({"pattern": "^(a|a)*(a*)*$"}, "a" * 200_000 + "b") == "choice 0: the schema does not hold"


FORM = {"type": "json_schema", "schema": CITY, "name": "s"}


def message(*parts: dict[str, Any], status: str = "completed") -> bytes:
    return json.dumps({"status": status, "output": [{"type": "reasoning"}, {"type": "message", "content": [*parts]}]}
                      ).encode()  # fmt: skip


def blocks(*given: dict[str, Any], reason: str = "end_turn") -> bytes:
    return json.dumps({"type": "message", "content": [*given], "stop_reason": reason}).encode()


GOOD, WRONG, HALF = '{"city": "Ulm"}', '{"city": "ulm"}', '{"city": "U'
RESPONSES = [
    (message({"type": "output_text", "text": GOOD}), ""),
    (message({"type": "output_text", "text": GOOD[:5]}, {"type": "output_text", "text": GOOD[5:]}), ""),
    (message({"type": "output_text", "text": WRONG}), "choice 0: the schema does not hold"),
    (
        message({"type": "output_text", "text": HALF}, status="incomplete"),
        "choice 0: no JSON (cut at the output limit)",
    ),
    (message(), "choice 0: no text"),
    (message({"type": "refusal", "refusal": "no"}), ""),
    (json.dumps({"status": "completed", "output": [{"type": "function_call", "name": "f"}]}).encode(), ""),
    (b'{"output": 5}', None),
    (b"[]", None),
]
BLOCKS = [
    (blocks({"type": "thinking", "thinking": "hm"}, {"type": "text", "text": GOOD}), ""),
    (blocks({"type": "text", "text": WRONG}), "choice 0: the schema does not hold"),
    (blocks({"type": "text", "text": HALF}, reason="max_tokens"), "choice 0: no JSON (cut at the output limit)"),
    (blocks({"type": "tool_use", "input": {}}), ""),
    (b'{"content": "text"}', None),
]


@pytest.mark.parametrize(("answer", "fault"), RESPONSES)
def test_responses_are_held_against_their_schema(answer: bytes, fault: str | None) -> None:
    assert checked(ask("m", "responses", text={"format": FORM}), answer) == fault


@pytest.mark.parametrize(("answer", "fault"), BLOCKS)
def test_messages_are_held_against_their_schema(answer: bytes, fault: str | None) -> None:
    assert checked(ask("m", "messages", output_config={"format": FORM}), answer) == fault
