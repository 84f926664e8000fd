"""The data class: the highest anybody says. Nothing lowers it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decision.sensitivity import data_class_of
from router.records import Findings
from serving.catalogue import DataClass
from tests.fakes.asking import ask, caller

CLASSES = st.sampled_from([c.name for c in DataClass])
CLEAN = Findings(scanned=10, opaque=())


@given(CLASSES, st.none() | CLASSES, st.booleans())
def test_it_is_the_highest_of_key_request_and_content(key: str, raised: str | None, opaque: bool) -> None:
    findings = Findings(10, ("messages[0].content[1]",)) if opaque else CLEAN
    found, why = data_class_of(ask(raised=raised), caller(key), findings)
    said = [DataClass[key], *([DataClass[raised]] if raised else []), *([DataClass.private] if opaque else [])]
    assert found == max(said)
    assert found >= DataClass[key]  # raising never lowers
    assert why


@pytest.mark.parametrize(
    ("key", "raised", "opaque", "data_class", "why"),
    [
        ("public", None, (), "public", "key k1 is public"),
        ("private", "public", (), "private", "key k1 is private"),
        ("public", "internal", (), "internal", "the request says internal"),
        ("private", "private", ("messages[0].content[0]",), "private", "key k1 is private"),
        ("public", None, ("messages[2].content[0]",), "private", "messages[2].content[0] cannot be read"),
        ("public", "internal", ("prompt",), "private", "prompt cannot be read and so counts as private"),
        ("secret", None, ("prompt",), "secret", "key k1 is secret"),
        ("public", "secret", ("prompt",), "secret", "the request says secret"),
    ],
)
def test_it_says_where_it_comes_from(
    key: str, raised: str | None, opaque: tuple[str, ...], data_class: str, why: str
) -> None:
    found, words = data_class_of(ask(raised=raised), caller(key), Findings(10, opaque))
    assert found.name == data_class
    assert why in words


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("messages[0].content[1].image_url", "messages[0].content[1]"),
        ("messages[0].Anna Karenina.image_url", "messages[0]"),
        ("messages[0].contentAnna.file", "messages[0].content"),
        ("input[0]", "input[0]"),
        ("tools[0].vector_store_ids", "a part of the body"),
        ("Anna.file_id", "a part of the body"),
    ],
)
def test_the_reason_quotes_no_key_of_the_body(path: str, where: str) -> None:
    _, why = data_class_of(ask(), caller("public"), Findings(10, (path,)))
    assert why == f"{where} cannot be read and so counts as private"
