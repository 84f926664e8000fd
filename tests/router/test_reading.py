"""The scanner reads every text there is, and names every part it cannot read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.scanner.reading import read


def chat(*parts: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}


TEXT = {"type": "text", "text": "hello"}


@pytest.mark.parametrize(
    ("body", "opaque"),
    [
        (chat(TEXT), ()),
        (chat(TEXT, {"type": "image_url", "image_url": {"url": "data:,x"}}), ("messages[0].content[1]",)),
        (chat({"type": "input_audio", "input_audio": {"data": "QQ=="}}), ("messages[0].content[0]",)),
        (chat({"type": "file", "file": {"file_id": "f1"}}), ("messages[0].content[0]",)),
        (chat({"type": "video_url", "video_url": {"url": "x"}}), ("messages[0].content[0]",)),
        (chat({"type": "made_up_tomorrow", "data": "?"}), ("messages[0].content[0]",)),
        (chat({"image_url": "shorthand without a type"}), ("messages[0].content[0]",)),
        (chat({**TEXT, "image_url": "smuggled into text"}), ("messages[0].content[0].image_url",)),
        ({"messages": [{"role": "user", "content": {"type": "image_url"}}]}, ("messages[0].content",)),
        ({"messages": [{"role": "assistant", "audio": {"id": "a1"}}]}, ("messages[0].audio",)),
        ({"messages": [{"role": "assistant", "content": None, "audio": None}]}, ()),
        ({"prompt": [1, 2, 3]}, ("prompt",)),
        ({"prompt": [[1, 2], "text", [3]]}, ("prompt[0]", "prompt[2]")),
        ({"input": [5, 6]}, ("input",)),
        ({"input": [[5], [6]]}, ("input[0]", "input[1]")),
        ({"input": ["a", "b"]}, ()),
        ({"input": [{"type": "blob", "data": "x"}]}, ("input[0]",)),
        ({"prompt_embeds": "QQ=="}, ("prompt_embeds",)),
        ({"prompt": "x", "stop_token_ids": [1, 2]}, ()),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["v1"]}]}, ("tools[0].vector_store_ids",)),
    ],
)
def test_parts_that_cannot_be_read_are_listed_by_path(body: dict[str, Any], opaque: tuple[str, ...]) -> None:
    assert read(body).opaque == opaque


def test_a_tool_whose_parameters_are_called_like_files_is_still_text() -> None:
    properties = {name: {"type": "string"} for name in ("file_id", "content", "image_url", "file")}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}
    assert read({"messages": [], "tools": [tool]}).opaque == ()


def test_bytes_of_keys_and_values_are_counted() -> None:
    assert read({"ab": "cdé", "e": [1, None, True, {"f": "g"}]}).scanned == len("ab") + len("cdé".encode()) + 3


def test_depth_costs_no_stack() -> None:
    deep: Any = "x"
    for _ in range(50_000):
        deep = [deep]
    assert read({"k": deep}).scanned == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def all_text(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, inner in value.items() for text in (key, *all_text(inner))]
    return [text for inner in value for text in all_text(inner)] if isinstance(value, list) else []


@given(st.dictionaries(st.text() | st.sampled_from(["messages", "content", "input"]), JSON))
def test_no_text_is_left_out(body: dict[str, Any]) -> None:
    found = read(body)
    assert found.scanned == sum(len(text.encode("utf-8", "surrogatepass")) for text in all_text(body))
    assert found == read(body)


@pytest.mark.parametrize(
    ("part", "fetched"),
    [
        ({"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}, True),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, False),
        ({"type": "input_image", "image_url": "http://x.example/"}, True),
        ({"type": "image_url", "image_url": {"url": "DATA:image/png;base64,AAAA"}}, False),
        ({"type": "video_url", "video_url": {"url": "file:///etc/passwd"}}, True),
        ({"type": "file", "file": {"file_data": "https://x.example/a.pdf"}}, True),
        ({"type": "image", "source": {"type": "url", "url": "ftp://x.example/a"}}, True),
        ({"type": "text", "text": "see https://x.example/"}, False),
    ],
)
def test_media_named_by_an_address_are_found(part: dict[str, object], fetched: bool) -> None:
    for content in ([part], part):
        assert read({"messages": [{"role": "user", "content": content}]}).fetches is fetched
