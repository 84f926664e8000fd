"""Fuzz target: what the scanner looks at: text in its one form, and what is written in another form inside of it.

Nothing raises, no more comes out than the budget of a search reckons with, and what was written in base64, hex or
escapes is read as what it was.
"""

from __future__ import annotations

import base64
import quopri
import re

from router.scanner import fragments, normal

RUN = re.compile(rb"[A-Za-z0-9+/_-]{16,}=*")
MOST = 200
"""Escaped tokens that are read of one text."""


def check(data: bytes) -> None:
    """Raises AssertionError where something is lost, made up or grows beyond measure."""
    text = data.decode("utf-8", "replace")
    check_form(text)
    check_decoders(data)
    check_read_back(data)


def check_form(text: str) -> None:
    """The one form is that of each character for itself, so that no slice and no neighbour changes it."""
    form = normal.folded(text)
    alone = {char: normal.folded(char) for char in set(text)}
    assert form == "".join(alone[char] for char in text), text
    if text.isascii():
        assert form == text and normal.hidden(text) == ""
    unseen = {*range(32), 127} - {ord("\t"), ord("\n")}
    assert not set(normal.encoded(text)) & unseen, "control characters are left"
    shown = normal.hidden(text)
    assert len(shown) <= 4 * len(text) + 1


def check_decoders(data: bytes) -> None:
    """Each of them on bytes that say anything."""
    found, whole = fragments.escapes(data, MOST)
    assert len(found) <= MOST + 1 and (whole or len(found) > 0 or len(data) > MOST)
    ends = [one.end() + 1 for one in RUN.finditer(data)]
    for at, run in fragments.runs(data + b" ", ends):
        assert 0 <= at <= len(data) and len(run) <= len(data)
        assert len(fragments.read(run)[0]) <= len(run)
        fragments.is_blob(run)
    for low in {0, len(data) // 3}:
        found += [*fragments.spaced(data, low, len(data)), *fragments.pairs(data, low, len(data))]
    for one in found:
        assert 0 <= one.at <= len(data), one
        assert len(one.text) <= 2 * len(data), "it grows beyond what a search may take"


def check_read_back(data: bytes) -> None:
    """What is printable ASCII is written in each form, and read back."""
    text = bytes(byte for byte in data if 32 <= byte < 127)
    if not text:
        return
    said = text.decode()
    assert fragments.read(text.hex().encode())[0] == said
    for coded in (base64.b64encode(text), base64.urlsafe_b64encode(text)):
        bare = coded.rstrip(b"=")
        if not (bare.islower() or bare.isdigit() or not re.sub(rb"[0-9a-fA-F]", b"", bare)):
            assert fragments.read(coded)[0] == said, coded
    if set(text) & set(b"%&\\="):
        return  # it may hold escapes of its own, and each form is read once
    assert fragments.unescaped("".join(f"%{byte:02x}" for byte in text).encode()) == text
    assert fragments.unescaped("".join(f"\\u{byte:04x}" for byte in text).encode()) == text
    assert fragments.unescaped("".join(f"&#{byte};" for byte in text).encode()) == text
    assert fragments.unescaped(quopri.encodestring(text, quotetabs=True), quoted=True) == text


if __name__ == "__main__":
    from tests.fuzz.driver import drive

    drive("fragments")
