"""The scanner reads every text there is, and names every part it cannot read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.scanner.reading import WHOLE, WORDS, most_texts, read, texts


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


def agent(*blocks: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "system": [{"type": "text", "text": "s"}],
        "messages": [{"role": "user", "content": [*blocks]}],
    }


def items(*given: Any) -> dict[str, Any]:
    return {"model": "m", "instructions": "s", "input": [*given]}


SAYS = {"type": "input_text", "text": "hello"}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}}


@pytest.mark.parametrize(
    ("body", "opaque"),
    [
        # Anthropic's messages
        (agent(TEXT), ()),
        (agent(PICTURE), ("messages[0].content[0]",)),
        (agent({"type": "document", "source": {"type": "text", "data": "x"}}), ("messages[0].content[0]",)),
        (agent({"type": "tool_result", "tool_use_id": "t", "content": [TEXT]}), ()),
        (agent({"type": "tool_result", "content": [TEXT, PICTURE]}), ("messages[0].content[0].content[1]",)),
        (agent({"type": "tool_use", "id": "t", "name": "f", "input": {"file": "a.py", "image": "b", "ids": [1]}}), ()),
        (agent({"type": "thinking", "thinking": "hm", "signature": "a" * 32}), ()),
        (agent({"type": "thinking", "thinking": "", "signature": "a" * 500}), ("messages[0].content[0].signature",)),
        (agent({"type": "redacted_thinking", "data": "QQ=="}), ("messages[0].content[0]",)),
        ({"system": [PICTURE], "messages": []}, ("system[0]",)),
        # OpenAI's responses
        ({"input": "hello", "instructions": "s"}, ()),
        (items({"role": "user", "content": [SAYS]}, {"type": "message", "role": "user", "content": "x"}), ()),
        (items({"role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}]}),
         ("input[0].content[0]",)),
        (items({"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}), ("input[0].content[0]",)),
        (items({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}), ()),
        (items({"type": "function_call_output", "call_id": "c", "output": "text"}), ()),
        (items({"type": "function_call_output", "output": [SAYS, {"type": "input_image", "image_url": "data:,x"}]}),
         ("input[0].output[1]",)),
        (items({"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "patch"}), ()),
        (items({"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}], "content": None}), ()),
        (items({"type": "reasoning", "summary": [], "encrypted_content": "QQ=="}), ("input[0].encrypted_content",)),
        (items({"type": "reasoning", "summary": [], "encrypted_content": None}), ()),
        (items({"type": "item_reference", "id": "msg_1"}), ("input[0]",)),
        (items({"type": "web_search_call", "id": "ws_1"}), ("input[0]",)),
    ],
)  # fmt: skip
def test_what_agents_send_is_read_and_what_they_hide_is_named(body: dict[str, Any], opaque: tuple[str, ...]) -> None:
    found = read(body)
    assert found.opaque == opaque
    assert found.scanned == sum(len(text) for text in all_text(body))


@pytest.mark.parametrize("kind", [[], {}, ["text"], 1, None, True])
def test_a_type_that_is_no_text_does_no_harm(kind: Any) -> None:
    assert read(chat({"type": kind, "text": "x"})).opaque == ("messages[0].content[0]",)
    assert read(items({"type": kind, "input": {"file": 1}})).opaque == ("input[0]",)


@pytest.mark.parametrize(
    ("body", "fetched"),
    [
        (agent({"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}}), True),
        (agent({"type": "tool_result", "content": [{"type": "image", "source": {"url": "https://x.example/"}}]}), True),
        (agent({"type": "tool_use", "name": "fetch", "input": {"url": "https://x.example/"}}), False),
        (agent({**TEXT, "citations": [{"url": "https://x.example/"}]}), False),
        ({"system": [{"type": "image", "source": {"url": "https://x.example/"}}], "messages": []}, True),
        (items({"role": "user", "content": [{"type": "input_image", "image_url": "https://x.example/"}]}), True),
        (items({"role": "user", "content": [{"type": "input_file", "file_url": "https://x.example/"}]}), True),
        (items({"type": "function_call", "name": "f", "arguments": '{"url": "https://x.example/"}'}), False),
        (items({"type": "function_call_output", "output": "https://x.example/"}), False),
    ],
)
def test_addresses_in_what_agents_send(body: dict[str, Any], fetched: bool) -> None:
    """What a tool was called with is fetched by nobody here; a picture named by its address would be."""
    assert read(body).fetches is fetched


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.sampled_from(sorted(WORDS)), inner)
    ),
    max_leaves=10,
)
BODIES = st.dictionaries(st.sampled_from(sorted(WORDS)) | st.text(max_size=8), VALUES, max_size=4)


def said(body: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one.where, one.text, one.role) for one in texts(body)]


def test_every_text_key_and_big_number_is_listed_with_its_place_and_who_says_it() -> None:
    body = {
        "model": "auto",
        "instructions": "be kind",
        "messages": [
            {"role": "system", "content": "be brief", "name": "sys"},
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"a": 1}'}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "found"},
        ],
        "tools": [{"type": "function", "function": {
            "name": "find", "parameters": {"properties": {"Jane": {"enum": ["x"]}}}}}],
        "metadata": {"customer 7": "Jane", "n": 4111111111111111},
        "stop": ["END"],
        "user": "u-1",
    }  # fmt: skip
    assert said(body) == [
        ("instructions", "be kind", "system"),
        ("messages[0].content", "be brief", "system"),
        ("messages[0].name", "sys", "system"),
        ("messages[1].content[0].text", "hello", "user"),
        ("messages[2].tool_calls[0].id", "c1", "assistant"),
        ("messages[2].tool_calls[0].function.name", "find", "assistant"),
        ("messages[2].tool_calls[0].function.arguments", '{"a": 1}', "assistant"),
        ("messages[3].tool_call_id", "c1", "tool"),
        ("messages[3].content", "found", "tool"),
        ("tools[0].function.name", "find", "schema"),
        ("tools[0].function.parameters.properties", "Jane", "key"),
        ("tools[0].function.parameters.properties", "x", "schema"),
        ("metadata", "customer 7", "key"),
        ("metadata", "Jane", "field"),
        ("metadata.n", "4111111111111111", "field"),
        ("stop[0]", "END", "field"),
        ("user", "u-1", "field"),
    ]


def test_a_key_stands_right_before_its_value() -> None:
    """It can say what that is: kinds that need a word look for it near."""
    given = {"passport": "C01X00T47", "note": "x", "born": {"on": ["1976-07-04"]}}
    listed = ["passport", "C01X00T47", "note", "x", "born", "on", "1976-07-04"]
    assert [one.text for one in texts({"metadata": given})] == listed
    assert [one.text for one in texts({"messages": [], "input": [{"type": "tool_use", "input": given}]})] == listed


def test_a_callers_own_names_never_stand_in_a_path() -> None:
    body = {"metadata": {"jane@roe": {"deep": ["text"]}}, "jane": "x", "input": [{"jane": {"content": "y"}}]}
    assert {one.where for one in texts(body)} == {"", "metadata", "input[0]"}


def test_the_bytes_of_media_are_no_text_and_what_stands_beside_them_is() -> None:
    picture = "data:image/png;base64," + "QUJD" * 100
    parts = [
        {"type": "image_url", "image_url": {"url": picture, "note": "Jane"}},
        {"type": "input_audio", "input_audio": {"data": "QUJD" * 100, "format": "Jane"}},
        {"type": "image_url", "image_url": {"url": "data:text/plain,Jane"}},
        {"type": "text", "text": picture},
    ]
    listed = [one.text for one in texts(chat(*parts))]
    assert listed == ["note", "Jane", "data", "Jane", "data:text/plain,Jane", picture]


@pytest.mark.parametrize("text", [
    "my card number is in this line and so on and so on " * 20, "data:image/png;base64,my card is QUJD",
    "QUJD" * 4096 + " Jane", "QUJD" * 20_000 + ".Jane",
])  # fmt: skip
def test_prose_in_a_part_that_nobody_can_read_is_text(text: str) -> None:
    """However it begins: only what is the bytes of media from end to end has the class of media alone."""
    assert text in [one.text for one in texts(chat({"type": "note", "text": text}))]


@pytest.mark.parametrize(
    "body",
    [
        {"metadata": {f"key {n}": "v" for n in range(50)}},
        {"metadata": {"of": [f"v{n}" for n in range(50)]}},
        {"metadata": {f"n{n}": 1e15 for n in range(50)}},
    ],
)
def test_more_texts_than_are_searched_are_not_read(body: dict[str, Any]) -> None:
    assert len(texts(body, 10)) == 11
    assert len(texts(body, 200)) > 49
    assert most_texts(4 * WHOLE) == 4 * most_texts(10), "a large request may have more"


def test_a_number_is_not_written_out_beyond_what_anybody_has() -> None:
    assert [text.text for text in texts({"seed": 1e308, "n": [1e308, 4539148803436467]})] == [
        "1e+308", "1e+308, 4539148803436467"
    ]  # fmt: skip


def test_many_numbers_are_one_text() -> None:
    assert said({"prompt": [1, 2, 4111111111111111, -5e12]}) == [("prompt", "4111111111111111, -5000000000000", "user")]


@given(BODIES)
def test_no_string_is_left_out_but_words_of_the_api(body: dict[str, Any]) -> None:
    listed = {one.text for one in texts(body)} | WORDS

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from value
            for inner in value.values():
                yield from strings(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from strings(inner)

    body.pop("model", None)
    assert set(strings(body)) <= listed
