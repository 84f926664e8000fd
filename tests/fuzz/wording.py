"""Fuzz target: an upstream's words about a request. A short sentence on one line, and nothing of the engine's inside.

The bytes are an error body as they are, and the message inside of one.
"""

from __future__ import annotations

import json
import re

from router.upstream import wording
from router.upstream.wording import LONGEST, MOST_READ, Said

ADDRESS = re.compile(r"\b[a-z]+://\w|\b\d{1,3}(?:\.\d{1,3}){3}\b", re.IGNORECASE)
INSIDE = re.compile(r"Traceback \(most recent call last\)")


def check(data: bytes) -> None:
    """Raises AssertionError where a caller would read too much, anything else where a body is not met at all."""
    check_said(wording.said(data))
    text = data.decode("utf-8", "replace")
    for shape in ({"error": {"message": text, "code": 400, "param": text}}, {"message": text}, {"error": text},
                  {"detail": text}, {"detail": [{"loc": ["body", text, 0], "msg": text}] * 5}):  # fmt: skip
        check_said(wording.said(json.dumps(shape).encode()))
    check_said(wording.spoken(text))
    assert wording.said(data) == wording.said(data), "not decided by what it says alone"


def check_said(told: Said) -> None:
    """What it says, and the sentence that is made of it."""
    assert len(told.message) <= MOST_READ and isinstance(told.code, str)
    assert told.param is None or 0 < len(told.param) <= 300, told.param
    sentence = wording.sentence(told.message)
    assert len(sentence) <= LONGEST, len(sentence)
    assert sentence.isprintable(), "it has more than one line, or something nobody sees"
    assert not ADDRESS.search(sentence) and not INSIDE.search(sentence), sentence


if __name__ == "__main__":
    from tests.fuzz.driver import drive

    drive("wording")
