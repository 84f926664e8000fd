"""Names of attached servers: whatever a server calls its model, callers get a name they can use."""

from __future__ import annotations

import pytest

from serving.attached import caller_name, refusal
from serving.catalogue import Attached, Model


@pytest.mark.parametrize(
    ("served", "name"),
    [
        ("Qwen/Qwen3.5-0.8B", "Qwen/Qwen3.5-0.8B"),
        ("/models/qwen", "models/qwen"),
        ("two words\r\nx-evil: 1", "two-words-x-evil:-1"),
        ("auto", "auto-model"),
        ("///", "model"),
        ("é", "model"),
        ("x" * 500, "x" * 120),
    ],
)
def test_a_served_name_becomes_one_that_callers_can_use(served: str, name: str) -> None:
    found = caller_name(served)
    assert found == name
    Model(name=found, place="local", lanes=("private",), context=1, output=1)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost:8000", True),
        ("https://gpu-7.internal:8000", True),
        ("http://gpu-7.internal:8000", False),
        ("https://user:pass@gpu-7.internal", False),
        ("https://:80", False),
    ],
)
def test_clear_text_to_another_host_is_refused(url: str, allowed: bool) -> None:
    assert (refusal(Attached(url=url)) == "") is allowed
