"""What is hidden is found, what is harmless is not, and what was not searched is said to be so."""

from __future__ import annotations

import base64
import quopri
import random
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from router.records import Found
from router.scanner.kinds import Kind
from router.scanner.reading import Text
from router.scanner.scanner import Scanner
from router.scanner.search import Budget
from serving.catalogue import DataClass
from tests.fakes.searching import NUMBER, WORD, kinds, scanner, search


@pytest.fixture(scope="module")
def used() -> Iterator[Scanner]:
    with TemporaryDirectory() as folder:
        yield scanner(Path(folder))


def between(sign: str) -> Callable[[str], str]:
    return lambda text: sign.join(text)


def shifted(first: int) -> Callable[[str], str]:
    """The digits of another script."""
    return lambda text: "".join(chr(first + int(c)) if c.isdigit() else c for c in text)


def _escaped(text: str, form: str) -> str:
    return "".join(form.format(ord(c)) for c in text)


HIDDEN: dict[str, Callable[[str], str]] = {
    "plain": str,
    "zero-width": between("\u200b"),
    "soft hyphen": between("\u00ad"),
    "bidi": between("\u202e"),
    "variation selectors": between("\ufe0f"),
    "supplementary selectors": between("\U000e0121"),
    "combining": between("\u0301"),
    "control characters": between("\x00"),
    "tags between": between("\U000e0041"),
    "tags": lambda text: "".join(chr(0xE0000 + ord(c)) for c in text),
    "fullwidth": lambda text: "".join(chr(ord(c) + 0xFEE0) if c > " " else "\u3000" for c in text),
    "arabic digits": shifted(0x660),
    "devanagari digits": shifted(0x966),
    "mathematical digits": shifted(0x1D7CE),
    "circled digits": lambda text: "".join(chr(0x245F + int(c)) if c in "123456789" else c for c in text),
    "homoglyphs": lambda text: text.translate(str.maketrans("aeopcxi", "аеорсхі")),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 without its end": lambda text: base64.b64encode(text.encode()).decode().rstrip("="),
    "base64url": lambda text: base64.urlsafe_b64encode(f"ÿþ? {text}".encode()).decode(),
    "base64 of utf-16": lambda text: base64.b64encode(text.encode("utf-16-le")).decode(),
    "base64 of utf-16 with a mark": lambda text: base64.b64encode(text.encode("utf-16")).decode(),
    "base64 of utf-16, the other way": lambda text: base64.b64encode(text.encode("utf-16-be")).decode(),
    "base64 of utf-16 beside umlauts": lambda text: base64.b64encode(f"für {text}: läuft".encode("utf-16-le")).decode(),
    "base64 of utf-16 beside Cyrillic": lambda text: base64.b64encode(
        f"номер счёта {text} есть у нас".encode("utf-16-le")
    ).decode(),
    "base64 of utf-32": lambda text: base64.b64encode(text.encode("utf-32")).decode(),
    "hex of utf-16": lambda text: text.encode("utf-16-be").hex(),
    "base64 behind a field's name": lambda text: "v=" + base64.b64encode(text.encode()).decode() + "&go=on",
    "wrapped base64": lambda text: base64.encodebytes(f"{'x' * 50} {text} {'y' * 50}".encode()).decode(),
    "base64 in a path": lambda text: "/api/v1/" + base64.b64encode(text.encode()).decode(),
    "hex": lambda text: text.encode().hex(),
    "hex pairs": lambda text: text.encode().hex(" "),
    "hex pairs with colons": lambda text: text.encode().hex(":").upper(),
    "percent": urllib.parse.quote,
    "percent behind a field's name": lambda text: f"?v={text[:2]}{_escaped(text[2:], '%{:02X}')}&go=on",
    "entities behind a field's name": lambda text: f"?v={text[:2]}{_escaped(text[2:], '&#{};')}",
    "u escapes behind a field's name": lambda text: f"?v={text[:2]}{_escaped(text[2:], chr(92) + 'u{:04x}')}",
    "percent all": lambda text: "".join(f"%{ord(c):02X}" for c in text),
    "entities": lambda text: "".join(f"&#{ord(c)};" for c in text),
    "entities in hex": lambda text: "".join(f"&#x{ord(c):x};" for c in text),
    "u escapes": lambda text: "".join(f"\\u{ord(c):04x}" for c in text),
    "x escapes": lambda text: "".join(f"\\x{ord(c):02x}" for c in text),
    "braced escapes": lambda text: "".join(f"\\u{{{ord(c):x}}}" for c in text),
    "octal escapes": lambda text: "".join(f"\\{ord(c):03o}" for c in text),
    "quoted-printable": lambda text: "".join(f"={ord(c):02X}" for c in text),
    "quoted-printable, wrapped": lambda text: quopri.encodestring(f"{'e' * 64} {text}".encode()).decode(),
    "spaced": between(" "),
    "newline inside": lambda text: f"{text[:11]}\n{text[11:]}",
    "windows newline inside": lambda text: f"{text[:11]}\r\n{text[11:]}",
    "two layers": lambda text: base64.b64encode(urllib.parse.quote(text).encode()).decode(),
    "two layers, the other way": lambda text: "".join(f"%{b:02x}" for b in base64.b64encode(text.encode())),
    "base64 of another script": lambda text: base64.b64encode(shifted(0x660)(text).encode()).decode(),
}


@pytest.mark.parametrize("form", HIDDEN)
@pytest.mark.parametrize(("kind", "text"), [("number", NUMBER), ("word", WORD)])
def test_a_hidden_text_is_found(used: Scanner, form: str, kind: str, text: str) -> None:
    searched = search(used, f"Please look at this: {HIDDEN[form](text)} and tell me more.")
    assert kind in kinds(searched)
    assert searched.unread == ""


@pytest.mark.parametrize("form", HIDDEN)
def test_a_harmless_one_is_harmless_in_every_form(used: Scanner, form: str) -> None:
    searched = search(used, f"Please look at this: {HIDDEN[form]('operation-heron@free.test')} and tell me more.")
    assert (kinds(searched), searched.unread) == ({}, "")


def test_a_text_split_over_two_messages_is_found(used: Scanner) -> None:
    assert kinds(search(used, "the number is 4539 1488", "0343 6467, thanks")) == {"number": 1}


def test_a_text_split_over_two_turns_of_one_speaker_is_found(used: Scanner) -> None:
    turns = [("user", "remember operation-her"), ("assistant", "I will."), ("user", "on@blue.test please")]
    texts = [Text(f"messages[{n}].content", text, role, True) for n, (role, text) in enumerate(turns)]
    assert kinds(used.search(texts)) == {"word": 1}


def test_texts_that_nobody_says_do_not_run_into_one_another(used: Scanner) -> None:
    assert kinds(search(used, "4539 1488", "0343 6467", role="field", said=False)) == {}


def test_where_it_stands_is_told_and_how_often(used: Scanner) -> None:
    searched = search(used, "nothing", f"{WORD} and {WORD}", f"{NUMBER}")
    assert searched.found == (
        Found("word", DataClass.secret, 2, "messages[1].content"),
        Found("number", DataClass.private, 1, "messages[2].content"),
    )
    assert [[one.kind for one in some] for some in searched.by_text] == [[], ["word"], ["number"]]


def test_a_number_without_its_check_digit_is_none(used: Scanner) -> None:
    assert kinds(search(used, "4539 1488 0343 6468")) == {}


def test_what_is_allowed_is_not_found_again_where_a_line_ends(used: Scanner) -> None:
    assert kinds(search(used, "write to operation-heron@free.test\nThanks\n", "operation-heron@free.test", "bye")) == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("file number: 123456", True),
        ("123456 is the File-Number", True),
        ("акт 123456", True),
        ("123456", False),
        ("profile numbers 123456", False),
        (f"file number {'x ' * 100} 123456", False),
    ],
)
def test_a_weak_kind_needs_its_word_beside_it(used: Scanner, text: str, found: bool) -> None:
    assert ("file" in kinds(search(used, text))) is found


def test_it_does_not_matter_where_in_a_long_text_something_stands(used: Scanner) -> None:
    filler = "Nothing of interest stands in this line, and nothing in the next.\n" * 8000
    for at in (0, 131_070, 131_072 - 700, 200_000, len(filler)):
        searched = search(used, filler[:at] + f" {NUMBER} " + filler[at:])
        assert (kinds(searched), searched.unread) == ({"number": 1}, ""), at


def test_a_word_that_was_told_of_before_the_slice_still_counts_in_it(used: Scanner) -> None:
    """Each word is told of once a pass; the first one may stand in what is only looked at again."""
    line = '{"file number": null, "note": "nothing of interest"}\n'
    lines = [line] * (300_000 // len(line))
    for at in (100, 2_600, 2_700, len(lines) - 3):
        given = "".join([*lines[:at], line.replace("null", "123456"), *lines[at:]])
        assert kinds(search(used, given)) == {"file": 1}, at


def test_a_weak_kind_is_found_wherever_the_slices_meet(used: Scanner) -> None:
    for at in range(131_072 - 60, 131_072 + 60, 7):
        filler = "nothing here\n" * 30_000
        given = f"{filler[:at]} file number 123456 {filler[at:]}"
        assert kinds(search(used, given)).get("file"), at


def test_what_is_long_is_found_over_several_line_ends(tmp_path: Path) -> None:
    """A token that was wrapped. What has no form of its own is joined over one line end only."""
    long = Kind(
        "long",
        DataClass.secret,
        (r"\bstart[a-z]{200,800}stop\b",),
        planted=(f"start{'y' * 300}stop",),
        reach=900,
        wrapped=True,
    )
    used = scanner(tmp_path, long)
    text = f"start{'y' * 400}stop"
    assert kinds(search(used, "\n".join(text[n : n + 76] for n in range(0, len(text), 76)))) == {"long": 1}


def test_a_long_line_without_gaps_is_searched_too(used: Scanner) -> None:
    for at in (131_060, 131_072, 262_140):
        assert kinds(search(used, "é" * (at // 2) + f".{WORD}." + "z" * 300_000)) == {"word": 1}


def test_a_blob_that_nobody_can_read_is_found_and_hashes_of_words_are_not(used: Scanner) -> None:
    blob = base64.b64encode(bytes(range(37, 256, 3)) * 2).decode()
    assert kinds(search(used, f"take this: {blob}")) == {"blob": 1}
    for begun in (bytes(2000), b"ab" * 2000):
        assert kinds(search(used, base64.b64encode(begun + random.Random(3).randbytes(4000)).decode())) == {"blob": 1}
    assert kinds(search(used, (bytes(2000) + random.Random(3).randbytes(4000)).hex())) == {"blob": 1}
    path = "/usr/share/" + "some-long-name/of-a-folder/" * 6
    assert kinds(search(used, path, "-" * 200, "A" * 200, "1234567890" * 10)) == {}


def test_a_blob_of_which_a_part_can_be_read_is_one(used: Scanner) -> None:
    """What is read of it says nothing of the rest."""
    said = base64.b64encode(f"what was said {WORD} and so on".encode()).decode().rstrip("=")
    rest = base64.b64encode(random.Random(4).randbytes(300)).decode().rstrip("=")
    assert kinds(search(used, f"take this: {said}/{rest}")) == {"word": 1, "blob": 1}
    assert kinds(search(used, f"take this: /api/{said}/v1")) == {"word": 1}


def test_a_file_in_utf_16_is_read_and_a_binary_one_of_which_a_mark_says_so_is_not(used: Scanner) -> None:
    page = f"Sehr geehrte Frau Müller, für {WORD} läuft etwas ab – siehe €. " * 60
    for form in ("utf-16", "utf-16-le", "utf-16-be"):
        for code in (base64.b64encode(page.encode(form)).decode(), page.encode(form).hex()):
            assert kinds(search(used, code)) == {"word": 60}, form
    false = b"\xff\xfe" + random.Random(5).randbytes(2000)
    assert kinds(search(used, base64.b64encode(false).decode())) == {"blob": 1}


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("x" * 2000, Budget(bytes=1000)),
        (f"{NUMBER} " * 100, Budget(hits=5)),
        ("4539 1488 0343 6468 " * 100, Budget(checks=5)),
        ("ab\ncd" * 100, Budget(breaks=5)),
        ("12\n34\nand so on\n" * 100, Budget(pieces=5)),
        ("aGVsbG8gd29ybGQgaGVsbG8= " * 100, Budget(fragments=5)),
        ("%41%42 " * 100, Budget(fragments=5)),
    ],
)
def test_what_the_budget_does_not_cover_counts_as_unread(used: Scanner, text: str, budget: Budget) -> None:
    assert search(used, text).unread == ""
    assert search(used, text, budget=budget).unread == "budget"


def test_a_search_that_takes_too_long_says_so(used: Scanner) -> None:
    assert search(used, "hello", budget=Budget(seconds=-1.0)).unread == "timeout"


def test_what_was_found_before_the_budget_ended_is_told(used: Scanner) -> None:
    searched = search(used, f"{WORD} " + "4539 1488 0343 6468 " * 100, budget=Budget(checks=20))
    assert searched.unread == "budget"
    assert "word" in kinds(searched)


def test_no_text_at_all_is_searched_whole(used: Scanner) -> None:
    assert search(used) == ((), 0, "", ())
    assert search(used, "", "").unread == ""


@pytest.mark.parametrize("width", [0, 64, 70, 76])
@pytest.mark.parametrize("margin", ["", "    ", "> "])
def test_what_is_cut_in_a_long_block_of_base64_is_found(used: Scanner, width: int, margin: str) -> None:
    """By the end of a line, of what is decoded at once, or of a pass."""
    filler = "Nothing of interest stands here. " * 4000
    for at in (49_152 - 9, 98_304 - 9, 100_003):
        code = base64.b64encode(f"{filler[:at]} {WORD} {filler[at:]}".encode()).decode()
        lines = [code] if not width else [code[n : n + width] for n in range(0, len(code), width)]
        assert "word" in kinds(search(used, "see\n" + "\n".join(margin + line for line in lines) + "\nend")), at


def test_a_long_text_in_base64_is_text_wherever_it_is_cut(used: Scanner) -> None:
    code = base64.b64encode(("é" * 40_000 + f" {WORD} " + "dé" * 40_000).encode()).decode()
    assert kinds(search(used, code)) == {"word": 1}


def test_a_file_of_hashes_is_read_to_its_end(used: Scanner) -> None:
    chance = random.Random(2)
    lines = (f"    --hash=sha256:{chance.randbytes(32).hex()} \\\n" for _ in range(4600))
    searched = search(used, "".join(lines) + WORD)
    assert (kinds(searched), searched.unread) == ({"word": 1}, "")
