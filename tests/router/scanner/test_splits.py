"""A number in pieces is found on however many lines, in however many messages; columns of numbers hold none."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from benchmarks.examples import EXAMPLES
from router.scanner import rules, views
from router.scanner.national import NATIONAL
from router.scanner.personal import PERSONAL
from router.scanner.reading import Text
from router.scanner.scanner import Scanner
from router.scanner.splits import EDGE, MOST, joined
from serving.catalogue import Privacy
from tests.fakes.searching import kinds, search

KINDS = (*PERSONAL, *NATIONAL)
IN_PIECES = sorted({kind.name for kind in KINDS} - {kind.name for kind in KINDS if not kind.in_pieces})
CARD = "4539 1488 0343 6467"
ACCOUNT = "GB82 WEST 1234 5698 7654 32"


@pytest.fixture(scope="module")
def used() -> Iterator[Scanner]:
    with TemporaryDirectory() as folder:
        yield Scanner(rules.of(Privacy(), KINDS), Path(folder))


def cut(value: str, pieces: int, chance: random.Random) -> list[str]:
    """So many pieces, each with a letter or digit; what is cut at a space loses it."""
    places = [n for n in range(1, len(value)) if (value[n - 1].isalnum() and value[n].isalnum()) or value[n] == " "]
    ends = [0, *sorted(chance.sample(places, min(pieces - 1, len(places)))), len(value)]
    return [value[a:b].strip() for a, b in itertools.pairwise(ends)]


def group(kind: str) -> str:
    """Two countries' numbers can look alike: either counts."""
    return kind.split("_")[0]


@pytest.mark.parametrize("kind", IN_PIECES)
@pytest.mark.parametrize("gap", ["\n", "\n\n", "\n  ", "message"])
def test_a_number_is_found_in_whatever_pieces_it_comes(used: Scanner, kind: str, gap: str) -> None:
    chance = random.Random(f"{kind} {gap}")
    for pieces in (2, 3, 4, 6):
        example = EXAMPLES[kind](chance)
        parts = cut(example.value, pieces, chance)
        parts = [example.before + parts[0], *parts[1:-1], f"{parts[-1]}\nThank you"]
        found = search(used, *parts) if gap == "message" else search(used, gap.join(parts))
        assert group(kind) in set(map(group, kinds(found))), parts
        assert found.unread == ""


@pytest.mark.parametrize("value", [CARD, ACCOUNT])
def test_groups_on_lines_of_their_own(used: Scanner, value: str) -> None:
    for text in (
        value.replace(" ", "\n"),
        "\n".join(re.findall("..?", value.replace(" ", ""))[:MOST]),
    ):
        if len(re.sub(r"\s", "", text)) == len(value.replace(" ", "")):
            for around in (text, f"Pay to\n{text}\nthanks", f"Pay 12\n{text}\n17 of June", f"1. Pay:\n{text}, today"):
                found = kinds(search(used, around))
                assert found.get("card") == 1 or found.get("iban") == 1, around


def test_pieces_of_one_speaker_between_the_words_of_another(used: Scanner) -> None:
    said = [("user", "4539 1488"), ("assistant", "go on"), ("user", "0343"), ("assistant", "yes?"), ("user", "6467")]
    texts = [Text(f"messages[{n}].content", text, role, True) for n, (role, text) in enumerate(said)]
    searched = used.search(texts)
    found = [[one.kind for one in some] for some in searched.by_text]
    assert ["card" in some for some in found] == [False] * 4 + [True], "it is told by the message that ends it"


def test_a_token_goes_over_any_number_of_lines(used: Scanner, tmp_path: Path) -> None:
    tokens = [kind for kind in rules.KINDS if kind.name == "credential_github"]
    found = Scanner(rules.of(Privacy(), tokens), tmp_path)
    token = rules.of(Privacy(), tokens).kinds[0].planted[0]
    lines = "\n".join(re.findall(".{1,7}", token))
    assert kinds(search(found, f"use {lines} today")) == {"credential_github": 1}


def test_a_column_of_numbers_holds_none(used: Scanner) -> None:
    chance = random.Random(4)
    for digits in (1, 2, 3, 4, 5):
        column = "\n".join(str(chance.randrange(10 ** (digits - 1), 10**digits)) for _ in range(3000))
        searched = search(used, column)
        assert (kinds(searched), searched.unread) == ({}, ""), digits


def test_a_number_that_begins_inside_a_row_of_pieces_is_none(used: Scanner) -> None:
    """Where it would neither begin nor end with what stands there, it is chance."""
    assert kinds(search(used, "1111\n4539\n1488\n0343\n6467\n2222")) == {}


@pytest.mark.parametrize("blank", ["\n", "\n ", "\n\t", " ", "\n\n \t", "=\n", "1\n\n", "\n" * 3000 + "1"])
def test_blank_lines_are_looked_at_once(used: Scanner, blank: str) -> None:
    text = (blank * 400_000)[:400_000]
    begun = time.thread_time()
    search(used, text)
    assert time.thread_time() - begun < 2, "some hundredths of a second; minutes where each line looks at all others"


def test_a_number_goes_over_blank_lines(used: Scanner) -> None:
    assert kinds(search(used, "card:\n\n4539\n \n\t\n1488\n\n\n0343\n\n 6467\n"))["card"] == 1
    assert kinds(search(used, "card 4539\n\n\n1488\n\n\n0343\n\n 6467 it is"))["card"] == 1


def test_short_lines_are_read_to_the_end(used: Scanner) -> None:
    chance = random.Random(3)
    words = ["fix", "the", "lock", "v1.2.3", "add", "7f3a9c1", "and", "x = 4,", "return", "+ 8 files", "}"]
    text = "".join(f"{chance.choice(words)} {chance.choice(words)}\n" for _ in range(40_000))[:400_000]
    assert len(text) > 350_000
    searched = search(used, f"{text}\n{CARD}")
    assert (kinds(searched)["card"], searched.unread) == (1, "")


def test_every_part_of_the_joined_view_stands_where_it_says() -> None:
    chance = random.Random(8)
    for _ in range(12):
        signs = ["a", "b1", " ", "\n", "\n", "=\n", "\n\n", "\t", "x" * chance.randrange(700)]
        text = "".join(chance.choice(signs) for _ in range(chance.choice((5, 50, 20_000))))
        read = views.read([Text("m", text, "user", True)], 10**9)
        view = joined(read, [Text("m", text, "user", True)], 10**9)
        assert view is not None
        for start, end, origin in zip(view.starts, [*view.starts[1:], len(view.data) - 1], view.origins, strict=True):
            assert read.view.data.startswith(view.data[start:end].rstrip(b"\x00"), origin)
        ends = re.sub(rb"\n(?:(?<=[^\n\t\x00 ]\n)|(?<=[^\n\t\x00 ] \n))(?= ?[^\s\x00])", b"", read.view.data)
        if max(map(len, text.split("\n"))) <= EDGE:
            assert ends.startswith(view.data[:-1]) or b"=" in ends
