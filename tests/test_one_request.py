"""From one command to a real answer, and everything after it, on a real vLLM. One installation is shared by the run."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.installation import Installation

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("engine"), pytest.mark.timeout(600)]

MESSAGES: Any = [{"role": "user", "content": "Say something."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 10}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def client(installation: Installation, key: str | None = None) -> openai.OpenAI:
    """The official client, as anybody would make it."""
    return openai.OpenAI(base_url=f"{installation.url}/v1", api_key=key or installation.first_key, max_retries=0)


def test_up_says_what_it_did_and_prints_a_curl_line_that_works(installation: Installation) -> None:
    assert "NOISE" in installation.output
    assert "data class private" in installation.output
    line = next(line for line in installation.output.splitlines() if line.startswith("curl "))
    answer = subprocess.run(["sh", "-c", line + " --silent --show-error"], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"]
    streamed = line.replace('{"model"', '{"stream": true, "model"') + " --silent --show-error --no-buffer"
    answer = subprocess.run(["sh", "-c", streamed], capture_output=True, text=True, check=True)
    assert answer.stdout.strip().endswith("data: [DONE]")


def test_chat_streamed_and_not(installation: Installation) -> None:
    ask = client(installation)
    whole = ask.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=12)
    assert whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 12
    chunks = list(ask.chat.completions.create(model="auto", messages=MESSAGES, max_tokens=12, stream=True))
    assert all(chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    counted = list(
        ask.chat.completions.create(
            model="private", messages=MESSAGES, max_tokens=4, stream=True, stream_options={"include_usage": True}
        )
    )
    assert counted[-1].usage is not None


def test_tools_streamed_and_not(installation: Installation) -> None:
    ask = client(installation)
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    whole = ask.chat.completions.create(
        model="demo", messages=MESSAGES, tools=[WEATHER], tool_choice=choice, max_tokens=200
    )
    (call,) = whole.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert set(json.loads(call.function.arguments)) == {"city"}
    arguments = ""
    for chunk in ask.chat.completions.create(
        model="demo", messages=MESSAGES, tools=[WEATHER], tool_choice=choice, max_tokens=200, stream=True
    ):
        for part in chunk.choices[0].delta.tool_calls or []:
            arguments += (part.function and part.function.arguments) or ""
    assert set(json.loads(arguments)) == {"city"}


def test_json_schema_and_logprobs(installation: Installation) -> None:
    ask = client(installation)
    schema: Any = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
                   "additionalProperties": False}  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    found = ask.chat.completions.create(model="demo", messages=MESSAGES, response_format=form, max_tokens=60)
    assert set(json.loads(found.choices[0].message.content or "")) == {"ok"}
    found = ask.chat.completions.create(model="demo", messages=MESSAGES, logprobs=True, top_logprobs=2, max_tokens=3)
    assert found.choices[0].logprobs is not None
    assert len(found.choices[0].logprobs.content or []) >= 1


def test_completions_and_models(installation: Installation) -> None:
    ask = client(installation)
    assert ask.completions.create(model="demo", prompt="The river", max_tokens=4).usage is not None
    assert {"demo", "auto", "private", "cheap", "frontier"} <= {m.id for m in ask.models.list()}


def test_vllm_parameters_pass(installation: Installation) -> None:
    found = client(installation).chat.completions.create(
        model="demo", messages=MESSAGES, max_tokens=5, seed=1, extra_body={"top_k": 1, "min_tokens": 5}
    )
    assert found.usage is not None
    assert found.usage.completion_tokens == 5


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_stops_the_engine(installation: Installation, stream: bool) -> None:
    """By vLLM's own count: the request of one that has left runs for a second at most (CL-001, CL-003)."""
    (demo,) = [i for i in json.loads(installation.ask("serving", "/instances"))["instances"] if i["name"] == "demo"]
    engine = Path(demo["address"].removeprefix("unix:"))

    def until_it_runs(count: int) -> None:
        end = time.monotonic() + 30
        while counted(installation.get(engine, "/metrics")) != count:
            assert time.monotonic() < end, f"it never ran {count}"
            time.sleep(0.01)

    body = {"model": "demo", "messages": MESSAGES, "max_tokens": 3500, "min_tokens": 3500, "stream": stream}
    headers = {"authorization": f"Bearer {installation.first_key}", "content-type": "application/json"}
    until_it_runs(0)
    caller = http.client.HTTPConnection("127.0.0.1", installation.port, timeout=60)
    with contextlib.closing(caller):
        caller.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        until_it_runs(1)
        answer = caller.getresponse() if stream else None
        assert answer is None or answer.read(40)
    if answer is not None:
        answer.close()  # it holds the socket as well
    left = time.monotonic()
    until_it_runs(0)
    took = time.monotonic() - left
    print(f"vLLM runs none {took * 1000:.0f} ms after its caller left")
    assert took < 5, "a tenth of a second on a machine with nothing else to do; else it would work to the end"
    last = installation.run("explain", "--last", "1", "--json").stdout
    assert "client_left" in last, "it had come to its end by itself"


def counted(metrics: str) -> int:
    """The requests that vLLM says it runs."""
    return int(sum(float(n) for n in re.findall(r"^vllm:num_requests_running\{[^}]*\} (\S+)$", metrics, re.MULTILINE)))


def test_the_official_client_sees_ordinary_errors(installation: Installation) -> None:
    with pytest.raises(openai.AuthenticationError):
        client(installation, "hg_wrong").models.list()
    with pytest.raises(openai.NotFoundError, match="demo"):
        client(installation).chat.completions.create(model="gpt-none", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="api_base"):
        client(installation).chat.completions.create(model="demo", messages=MESSAGES, extra_body={"api_base": "x"})
    with pytest.raises(openai.BadRequestError, match="name one model"):
        client(installation).embeddings.create(model="auto", input="hi")
    with pytest.raises(openai.BadRequestError, match="embeddings"):
        client(installation).embeddings.create(model="demo", input="hi")


def test_a_request_is_explained_afterwards(installation: Installation) -> None:
    raw = client(installation).chat.completions.with_raw_response.create(model="demo", messages=MESSAGES, max_tokens=3)
    shown = installation.run("explain", "--request", raw.headers["x-request-id"]).stdout
    assert "demo (local)" in shown
    assert "answered, status 200" in shown
    record = json.loads(installation.run("explain", "--json", "--request", raw.headers["x-request-id"]).stdout)
    assert [e["kind"] for e in record["events"]] == ["opened", "closed"]
    assert record["events"][1]["output_tokens"] == 3


def test_a_dry_run_sends_nothing(installation: Installation) -> None:
    body = json.dumps({"model": "frontier", "messages": MESSAGES})
    before = installation.requests_served()
    found = json.loads(installation.run("explain", "--json", given=body).stdout)
    assert found["order"] == [{"model": "far-demo", "endpoint": "far-demo", "place": "hosted"}] or found["refusals"]
    assert installation.requests_served() == before


def test_status_logs_plan_doctor_chat(installation: Installation) -> None:
    state = json.loads(installation.run("status", "--json").stdout)
    (demo,) = [i for i in state["serving"]["instances"] if i["name"] == "demo"]
    assert demo["state"] == "ready"
    assert demo["address"].startswith("unix:")
    assert "demo" in installation.run("status").stdout
    assert "Uvicorn" in installation.run("logs", "demo", "-n", "400").stdout or installation.run("logs", "demo").stdout
    plan = json.loads(installation.run("plan", "--json", "--model", "demo").stdout)
    assert "vllm.entrypoints.openai.api_server" in plan["placed"][0]["command"]
    assert "demo is ready" in installation.run("doctor", check=False).stdout
    assert "— demo (local)" in installation.run("chat", "--model", "demo", "Hello").stdout


def test_the_engine_listens_on_nothing_public(installation: Installation) -> None:
    """Every listening TCP socket of ours is the router's, on loopback."""
    pids = installation.pids()
    listening = [s for s in installation.listening_sockets(pids) if s[0] not in ("127.0.0.1", "::1")]
    assert listening == []


def test_metrics_on_the_admin_socket_only(installation: Installation) -> None:
    with pytest.raises(urllib.request.HTTPError):
        urllib.request.urlopen(f"{installation.url}/metrics")
    text = installation.ask("admin", "/metrics")
    assert re.search(r'headgate_requests_total\{lane="named",model="demo",outcome="answered",place="local"\} \d', text)
    assert Path(installation.home.socket("admin")).stat().st_mode & 0o077 == 0


def test_a_public_key_reaches_the_hosted_model_and_a_private_one_does_not(installation: Installation) -> None:
    """The second vLLM plays the hosted provider, with a counter of bytes in front of it."""
    public = installation.make_key("public")
    private = installation.make_key("private")
    with pytest.raises(openai.PermissionDeniedError, match="may receive public data; this is private"):
        client(installation, private).chat.completions.create(model="frontier", messages=MESSAGES)
    assert installation.provider_bytes() == 0
    raw = client(installation, public).chat.completions.with_raw_response.create(
        model="frontier", messages=MESSAGES, max_tokens=5
    )
    assert raw.headers["x-headgate-place"] == "hosted"
    assert raw.parse().choices[0].message.content is not None
    assert installation.provider_bytes() > 0
    chunks = list(
        client(installation, public).chat.completions.create(
            model="frontier", messages=MESSAGES, max_tokens=5, stream=True
        )
    )
    assert chunks[-1].choices[0].finish_reason
    seen = installation.provider_bytes()
    with pytest.raises(openai.PermissionDeniedError):
        client(installation, private).chat.completions.create(model="frontier", messages=MESSAGES)
    assert installation.provider_bytes() == seen
    listed = json.loads(installation.run("providers", "list", "--json").stdout)
    (far,) = [p for p in listed if p["enabled"]]
    assert far["keys"] == 1
