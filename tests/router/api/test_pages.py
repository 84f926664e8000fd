"""What the one OpenAPI document says, and what is told of paths that other servers have."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from fastapi import FastAPI

from router.api import pages
from router.api.inference import ROUTES
from router.api.pages import NOT_OFFERED, build, missing


@pytest.fixture
def document() -> dict[str, Any]:
    app: FastAPI = build(cast(Any, None), cast(Any, None), lambda: "", lambda _: None)
    return app.openapi()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/rerank", "Reranking is not offered"),
        ("/v2/rerank", "Reranking is not offered"),
        ("/v1/audio/transcriptions", "transcription are not offered"),
        ("/v1/audio/speech", "not offered"),
        ("/v1/images/generations", "not made here"),
        ("/v1/batches", "one by one"),
        ("/v1/files/file_1", "inside the request"),
        ("/v1/realtime", "Realtime"),
        ("/v1/messages/batches", "one by one"),
        ("/v1/responses/resp_1", "not kept"),
        ("/v1/responses/resp_1/cancel", "not kept"),
    ],
)
def test_what_other_servers_have_is_answered_with_the_reason(path: str, words: str) -> None:
    error = missing(path)
    assert (error.status, error.code) == (404, "not_offered")
    assert words in error.message
    assert error.message.endswith(".")


@pytest.mark.parametrize("path", ["/", "/v1/made_up", "/v1/rerankers", "/v1/messagesX", "/v1/audios"])
def test_any_other_path_is_just_not_there(path: str) -> None:
    assert missing(path).code == "not_found"


def test_no_route_that_is_offered_is_said_not_to_be() -> None:
    assert not NOT_OFFERED.keys() & ROUTES.keys()


@pytest.mark.parametrize("path", ROUTES)
def test_every_inference_route_is_described_whole(document: dict[str, Any], path: str) -> None:
    route = document["paths"][path]["post"]
    assert route["summary"]
    assert {int(status) for status in route["responses"]} >= {200, *pages.STATUSES}
    assert route["security"] == [{"bearer": []}, {"x-api-key": []}]
    assert route["requestBody"]["content"]["application/json"]["schema"]["required"] == ["model"]


def test_both_forms_of_a_key_are_described(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"]["scheme"] == "bearer"
    assert (schemes["x-api-key"]["in"], schemes["x-api-key"]["name"]) == ("header", "x-api-key")


def test_the_document_names_no_other_host(document: dict[str, Any]) -> None:
    assert "http" not in json.dumps(document).replace('"type": "http"', "")
