"""OpenAI's responses and Anthropic's messages, as Codex and Claude Code speak them, on a real vLLM."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import openai
import pytest

from tests.installation import Installation

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("engine"), pytest.mark.timeout(600)]

SHELL = {"type": "object", "properties": {"command": {"type": "string", "maxLength": 10}}, "required": ["command"],
         "additionalProperties": False}  # fmt: skip
CODEX: dict[str, Any] = {
    "model": "demo",
    "instructions": "You are a coding agent.",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be short."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say something."}]},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
        {"type": "function_call", "name": "shell", "arguments": '{"command": "ls"}', "call_id": "c1"},
        {"type": "function_call_output", "call_id": "c1", "output": "README.md"},
    ],
    "tools": [{"type": "function", "name": "shell", "description": "Runs it", "strict": False, "parameters": SHELL}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "3f0c",
    "client_metadata": {"installation": "x"},
    "max_output_tokens": 8,
}
"""What Codex sends, by its source."""
CLAUDE_CODE: dict[str, Any] = {
    "model": "demo",
    "max_tokens": 8,
    "system": [{"type": "text", "text": "You are a coding agent.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Say something."}]},
        {"role": "assistant", "content": [
            {"type": "text", "text": "I look."}, {"type": "tool_use", "id": "t1", "name": "shell", "input": SHELL}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "README.md"}],
             "cache_control": {"type": "ephemeral"}}]},
    ],
    "tools": [{"name": "shell", "input_schema": SHELL, "cache_control": {"type": "ephemeral"}}],
    "metadata": {"user_id": "user_1"},
    "context_management": {"edits": []},
    "temperature": 1,
}  # fmt: skip
"""What Claude Code sends, by its traffic."""


class Reply(NamedTuple):
    """One answer, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    raw: bytes

    def body(self) -> Any:
        return json.loads(self.raw)

    def events(self) -> list[dict[str, Any]]:
        """The data of a stream's events."""
        return [json.loads(line[6:]) for line in self.raw.decode().splitlines() if line.startswith("data: ")]


def post(installation: Installation, path: str, body: dict[str, Any], **headers: str) -> Reply:
    """As those clients do it: Claude Code's key comes in a header of its own, and its path has a query."""
    address = urlsplit(installation.url)
    with closing(http.client.HTTPConnection(str(address.hostname), address.port, timeout=120)) as line:
        line.request("POST", path, json.dumps(body), {"content-type": "application/json", **headers})
        answer = line.getresponse()
        return Reply(answer.status, answer.headers, answer.read())


def claude_code(installation: Installation, **changed: Any) -> Reply:
    return post(
        installation, "/v1/messages?beta=true", CLAUDE_CODE | changed,
        **{"x-api-key": installation.first_key, "anthropic-version": "2023-06-01", "anthropic-beta": "a,b"},
    )  # fmt: skip


def codex(installation: Installation, **changed: Any) -> Reply:
    return post(installation, "/v1/responses", CODEX | changed, authorization=f"Bearer {installation.first_key}")


def closed(installation: Installation, answer: Reply) -> dict[str, Any]:
    """The ledger's last event of this request."""
    shown = installation.run("explain", "--json", "--request", str(answer.headers["x-request-id"])).stdout
    event: dict[str, Any] = json.loads(shown)["events"][-1]
    assert (event["kind"], event["outcome"]) == ("closed", "answered")
    return event


def test_codex_is_answered_whole(installation: Installation) -> None:
    answer = codex(installation)
    body = answer.body()
    assert answer.status == 200, body
    assert body["object"] == "response"
    assert body["output"]
    assert answer.headers["x-headgate-dropped"] == "client_metadata"
    entry = closed(installation, answer)
    assert (entry["prompt_tokens"], entry["output_tokens"]) == (
        body["usage"]["input_tokens"], body["usage"]["output_tokens"],
    )  # fmt: skip


def test_codex_is_answered_in_a_stream(installation: Installation) -> None:
    answer = codex(installation, stream=True)
    assert answer.status == 200
    found = answer.events()
    assert found[0]["type"] == "response.created"
    assert any(event["type"].endswith(".delta") for event in found)
    assert found[-1]["type"] == "response.completed"
    entry = closed(installation, answer)
    assert entry["output_tokens"] == found[-1]["response"]["usage"]["output_tokens"]
    assert entry["prompt_tokens"] == found[-1]["response"]["usage"]["input_tokens"]


def test_the_official_client_speaks_responses(installation: Installation) -> None:
    client = openai.OpenAI(base_url=f"{installation.url}/v1", api_key=installation.first_key, max_retries=0)
    whole = client.responses.create(model="demo", input="Say something.", max_output_tokens=8)
    assert whole.usage is not None
    assert whole.usage.output_tokens <= 8
    with client.responses.stream(model="auto", input="Say something.", max_output_tokens=8) as stream:
        kinds = [event.type for event in stream]
    assert kinds[-1] == "response.completed"
    schema: Any = {"type": "json_schema", "name": "a", "schema": SHELL, "strict": True}
    formed = client.responses.create(model="demo", input="Go.", text={"format": schema}, max_output_tokens=200)
    assert set(json.loads(formed.output_text)) == {"command"}
    with pytest.raises(openai.BadRequestError, match="not kept here"):
        client.responses.create(model="demo", input="Hi", previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError, match="in the background"):
        client.responses.create(model="demo", input="Hi", background=True)
    with pytest.raises(openai.BadRequestError, match="no tool is run here"):
        client.responses.create(model="demo", input="Hi", tools=[{"type": "web_search"}])
    with pytest.raises(openai.NotFoundError, match="not kept here"):
        client.responses.retrieve("resp_1")


def test_claude_code_is_answered_whole(installation: Installation) -> None:
    answer = claude_code(installation)
    body = answer.body()
    assert answer.status == 200, body
    assert body["type"] == "message"
    assert body["content"]
    assert answer.headers["x-headgate-dropped"] == "context_management"
    entry = closed(installation, answer)
    assert entry["output_tokens"] == body["usage"]["output_tokens"]
    assert entry["prompt_tokens"] >= body["usage"]["input_tokens"]


def test_claude_code_is_answered_in_a_stream(installation: Installation) -> None:
    answer = claude_code(installation, stream=True)
    assert answer.status == 200
    found = answer.events()
    assert found[0]["type"] == "message_start"
    assert any(event["type"] == "content_block_delta" for event in found)
    assert found[-2]["delta"]["stop_reason"]
    assert found[-1]["type"] == "message_stop"
    entry = closed(installation, answer)
    assert entry["output_tokens"] == found[-2]["usage"]["output_tokens"] > 0
    assert entry["prompt_tokens"] > 0


def test_a_tool_is_called_in_both_dialects(installation: Installation) -> None:
    answer = codex(installation, stream=True, tool_choice={"type": "function", "name": "shell"}, max_output_tokens=200)
    kinds = [event["type"] for event in answer.events()]
    assert "response.function_call_arguments.delta" in kinds
    answer = claude_code(installation, stream=True, tool_choice={"type": "tool", "name": "shell"}, max_tokens=200)
    blocks = [event["content_block"] for event in answer.events() if event["type"] == "content_block_start"]
    assert any(block["type"] == "tool_use" and block["name"] == "shell" for block in blocks)


def test_errors_come_in_the_callers_dialect(installation: Installation) -> None:
    answer = claude_code(installation, model="gpt-none")
    body = answer.body()
    assert (answer.status, body["type"]) == (404, "error")
    assert "demo" in body["error"]["message"]
    answer = post(installation, "/v1/messages", CLAUDE_CODE, **{"x-api-key": "hg_wrong"})
    assert (answer.status, answer.body()["type"]) == (401, "error")
    answer = codex(installation, model="gpt-none")
    assert (answer.status, answer.body()["error"]["code"]) == (404, "model_not_found")


def test_claude_code_has_its_prompt_counted(installation: Installation) -> None:
    """The count is that of the same prompt when it is answered, and no model has been at work for it."""
    counted = post(installation, "/v1/messages/count_tokens", CLAUDE_CODE, **{"x-api-key": installation.first_key})
    assert counted.status == 200, counted.raw
    answered = closed(installation, claude_code(installation))
    assert counted.body()["input_tokens"] == answered["prompt_tokens"]
    entry = closed(installation, counted)
    assert (entry["prompt_tokens"], entry["output_tokens"], entry["estimated"]) == (0, 0, False)


MESSAGES = [{"role": "user", "content": "Hi"}]
WRONG: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("chat/completions", {"messages": MESSAGES, "temperature": "warm"}, "temperature: Input", "temperature"),
    ("chat/completions", {"messages": MESSAGES, "temperature": -3}, "temperature must be", "temperature"),
    ("chat/completions", {"messages": "Hi"}, "messages: Input should be a valid list", "messages"),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "text: Field required", None),
    ("chat/completions", {"messages": []}, "empty conversation", None),
    ("completions", {"prompt": {"a": 1}}, "prompt: Input should be", "prompt"),
    ("responses", {"input": [{"type": "nothing"}]}, "input: Input should be", "input"),
    ("messages", {"messages": MESSAGES, "max_tokens": 0}, "max_tokens must be positive", "max_tokens"),
    ("messages/count_tokens", {"messages": "Hi"}, "messages: Input should be a valid list", "messages"),
]


@pytest.mark.parametrize(("route", "body", "words", "param"), WRONG)
def test_what_vllm_finds_wrong_is_a_readable_sentence(
    installation: Installation, route: str, body: dict[str, Any], words: str, param: str | None
) -> None:
    key = {"authorization": f"Bearer {installation.first_key}"}
    answer = post(installation, f"/v1/{route}", {"model": "demo", **body}, **key)
    assert answer.status == 400, answer.raw
    error = answer.body()["error"]
    assert words in error["message"]
    assert not any(sign in error["message"] for sign in ("{'", "[type=", "://", "validation error"))
    assert error["type"] == "invalid_request_error"
    if not route.startswith("messages"):
        assert error["param"] == param
    shown = installation.run("explain", "--json", "--request", str(answer.headers["x-request-id"])).stdout
    assert json.loads(shown)["events"][-1]["outcome"] == "bad_request"


def test_hosted_models_are_not_asked_in_these_dialects(installation: Installation) -> None:
    answer = codex(installation, model="frontier")
    body = answer.body()
    assert answer.status in (403, 404), body
    assert body["error"]["code"] in ("route_not_offered", "model_not_found"), body
