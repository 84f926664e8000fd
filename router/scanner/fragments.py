"""Finds what is written in another form inside a text, and reads it: base64, hex, escapes, spaced letters. Pure.

Where such a fragment can be is told by patterns of the scanner's one pass (RUN, SPACED, PAIRS: each ends once for one
run) or by a mark that is looked for without going back. Nothing is decoded twice, so the work is linear in the text.
"""

from __future__ import annotations

import base64
import binascii
import html
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

BLOB_KIND = "blob"
"""The kind of a run that says nothing to anybody here."""
RUN = r"[A-Za-z0-9+/_-]{8}(?:[A-Za-z0-9+/_-]{8}|=)={0,2}[^A-Za-z0-9+/_=-]"
"""The end of a run that can be base64 or hex."""
SPACED = r"(?:\S {1,3}){7}\S(?: {0,3}\n| {1,3}\S\S| {4,}|\t)"
"""The end of single characters with spaces between them."""
PAIRS = r"(?:[2-7][0-9A-Fa-f][ :,]){7}[2-7][0-9A-Fa-f](?:[^0-9A-Fa-f :,]|[ :,]+[^2-7 :,]|[ :,][2-7][^0-9A-Fa-f])"
"""The end of letters in hex, each for itself."""
LONGEST, LAP = 65536, 8192
"""Bytes of one run that are decoded at once, and how many of the next ones besides: what is cut is whole in one."""
WRAPPED = 40
"""Letters of a line from which on the next one can go on with it, and what may stand between them at most."""
BLOB = 64
"""Characters from which on a run that says nothing to anybody counts as unread."""
SAMPLE, SAMPLES = 1024, 4
"""Characters of such a run that are looked at, in so many places: many a file begins like no other part of it."""
WINDOW = 16 * 1024
"""Bytes that are looked at in one step, for Python runs nothing else meanwhile."""
MOST_PARTS = 64
"""Parts of a run that are read each for itself."""
SHORTEST = 6
"""Characters of an escaped token from which on it can hold a finding; files of code points hold thousands of less."""
HASHES = frozenset({64, 96, 128})
"""Digits of a hash in hex: files that pin packages hold thousands, and nothing else is said so."""
NEAR = 512
"""Bytes to either side of an escape in which its token begins and ends."""
MARKS = 3
"""Escapes to a token, on the average: so many more of them than of tokens are looked at, each at a microsecond."""
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-"
_HEX = b"0123456789abcdefABCDEF"
_MARGIN = b" \t\n\"'`>#*"
_URLSAFE = bytes.maketrans(b"-_", b"+/")
_PRINTED = bytes([9, 10, 13, *range(32, 127)])
_MARKS = (
    (b"%", re.compile(rb"%[0-9A-Fa-f]{2}")),
    (b"&", re.compile(rb"&(?:#[0-9xX]|[A-Za-z]{2,8};)")),
    (b"\\", re.compile(rb"\\(?:u[0-9A-Fa-f{]|U0|x[0-9A-Fa-f]{2}|[0-3][0-7]{2})")),
    (b"=", re.compile(rb"=(?:[2-7][0-9A-F]|[89A-F][0-9A-F]=[89AB])")),
)
_REST = re.compile(rb"(?:=\n|\S){0,4096}")
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_QUOTED = re.compile(rb"=(?:\n|([2-9A-F][0-9A-F]))")
_ESCAPE = re.compile(
    rb"\\(?:u\{([0-9A-Fa-f]{1,6})\}|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|x([0-9A-Fa-f]{2})|([0-3][0-7]{2}))"
)
_WORD = re.compile(rb"\S{2,}")
_PAIRED_RUN = re.compile(rb"(?<![0-9A-Za-z])(?:[2-7][0-9A-Fa-f][ :,]){7,}[2-7][0-9A-Fa-f](?![0-9A-Fa-f])")
_BETWEEN = re.compile(rb"[ :,]")


class Fragment(NamedTuple):
    """What a part of a text says once it is decoded."""

    at: int
    """Where that part begins, in bytes."""
    text: str


def runs(data: bytes, ends: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Each run that ends there, with its start; lines of a block that was wrapped come as one run besides."""
    block: list[bytes] = []
    block_at = last = 0
    for end in ends:
        stop = end - 1
        head = data[last:stop]
        run = head[len(head.rstrip(b"=").rstrip(_ALPHABET)) :]
        start = stop - len(run)
        if block and len(block[-1]) >= WRAPPED and _goes_on(data[last:start]):
            block.append(run)
        else:
            if len(block) > 1:
                yield from _pieces(block_at, b"".join(block))
            block, block_at = [run], start
        last = stop
        yield from _pieces(start, run)
    if len(block) > 1:
        yield from _pieces(block_at, b"".join(block))


def _goes_on(gap: bytes) -> bool:
    """Whether only the end of a line stands between two runs, and what quotes or indents the next one."""
    return gap == b"\n" or (len(gap) < WRAPPED and b"\n" in gap and not gap.strip(_MARGIN))


def _pieces(start: int, run: bytes) -> Iterator[tuple[int, bytes]]:
    for at in range(0, max(1, len(run) - LAP), LONGEST):
        yield start + at, run[at : at + LONGEST + LAP]


def read(run: bytes) -> tuple[str, bytes]:
    """What a run says as base64 or hex, empty where it is neither, or no text; and what of it says nothing."""
    bare = run.rstrip(b"=")
    if not bare.strip(_HEX) and len(bare) % 2 == 0 and (found := _text(binascii.unhexlify(bare))):
        return found, b""
    if bare.islower() or bare.isdigit():
        return "", run  # text in base64 has capitals: the first letter of four stands for six bits below 32
    if found := _base64(bare):
        return found, b""
    parts = re.split(rb"[/_+-]", bare, maxsplit=MOST_PARTS)
    said = {part: text for part in parts if len(parts) > 1 and len(part) >= 16 and (text := _base64(part))}
    if not said:
        return "", run
    return "\n".join(said.values()), b"/".join(part for part in parts if part not in said)


def is_hash(run: bytes) -> bool:
    """Whether a run is as long as a hash in hex, and nothing else."""
    return len(run) in HASHES and not run.strip(_HEX)


def is_blob(run: bytes) -> bool:
    """Whether a run that says nothing is so long and so mixed that it can hide anything."""
    bare = run.rstrip(b"=")
    if len(bare) < BLOB:
        return False
    if is_hash(bare):
        return False
    dense = bare.replace(b"AAAA", b"").replace(b"0000", b"")  # files are full of zeros, which hide what is between
    step = max(SAMPLE, len(dense) // SAMPLES)
    return any(_is_mixed(dense[at : at + SAMPLE]) for at in range(0, max(1, len(dense) - SAMPLE // 2), step))


def _is_mixed(sample: bytes) -> bool:
    hexadecimal = not sample.strip(_HEX)
    mixed = sample != sample.lower() and sample != sample.upper() and not sample.isalpha()
    counts = Counter(sample).values()
    entropy = -sum(n / len(sample) * math.log2(n / len(sample)) for n in counts)
    return entropy > 3.5 if hexadecimal else mixed and entropy > 4.6


def spaced(data: bytes, low: int, end: int) -> Iterator[Fragment]:
    """Single characters with spaces between them, drawn together; a wider gap stays a space."""
    first = max(low, data.rfind(b"\n", low, end - 1) + 1)
    for start, stop in _windows(first, end):
        line = data[start:stop].rstrip()
        if stop == end and line[-2:-1].strip():  # the pattern looks on into the next word
            line = line[: max(line.rfind(b" "), 0)].rstrip()
        words = max((word.end() for word in _WORD.finditer(line)), default=0)
        run = line[words:].strip()
        drawn = run.replace(b"   ", b"\x01").replace(b" ", b"").replace(b"\x01", b" ")
        if drawn:
            yield Fragment(start + words, drawn.decode("utf-8", "replace"))


def pairs(data: bytes, low: int, end: int) -> Iterator[Fragment]:
    """Letters in hex, each for itself."""
    for start, stop in _windows(low, end):
        for found in _PAIRED_RUN.finditer(data, start, stop):
            if text := _text(bytes.fromhex(_BETWEEN.sub(b"", found[0]).decode())):
                yield Fragment(found.start(), text)


def _windows(low: int, end: int) -> Iterator[tuple[int, int]]:
    """Parts of a stretch, each so short that one step over it is; what is cut by one is whole in the next one."""
    for start in range(low, end, WINDOW):
        yield start, min(end, start + WINDOW + NEAR)


def escapes(data: bytes, most: int) -> tuple[list[Fragment], bool]:
    """Every token in which something is escaped, read; and whether they were no more than `most`."""
    found: list[Fragment] = []
    marks = 0
    for sign, pattern in _MARKS:
        if sign not in data:
            continue
        done = 0
        for mark in pattern.finditer(data):
            marks += 1
            if marks > most * MARKS or len(found) > most:
                return found, False
            if mark.start() < done:
                continue
            start, done = _token(data, mark.start(), done)
            token = data[start:done]
            text = unescaped(token, quoted=sign == b"=")
            if text != token and len(shown := text.decode("utf-8", "replace")) >= SHORTEST:
                found.append(Fragment(start, shown))
    return found, True


def _token(data: bytes, at: int, low: int) -> tuple[int, int]:
    """The token around a place, from `low` on at the earliest."""
    low = max(low, at - NEAR)
    start = max(low, data.rfind(b" ", low, at) + 1, data.rfind(b"\n", low, at) + 1)
    rest = _REST.match(data, at)
    return start, rest.end() if rest else at + 1


def unescaped(token: bytes, *, quoted: bool = False) -> bytes:
    """Percent signs, entities and backslashes, each read once; or what is `quoted`, as quoted-printable has it.

    Not both: of `card=4111%201111` the one would make a letter of the number's beginning.
    """
    if quoted:
        return _QUOTED.sub(lambda m: b"" if m[1] is None else bytes([int(m[1], 16)]), token)
    text = _PERCENT.sub(lambda m: bytes([int(m[1], 16)]), token)
    if b"\\" in text:
        text = _ESCAPE.sub(_escaped, text)
    if b"&" in text:
        text = html.unescape(text.decode("utf-8", "replace")).encode("utf-8", "replace")
    return text


def _escaped(found: re.Match[bytes]) -> bytes:
    if found[5] is not None:
        return bytes([int(found[5], 8)])
    code = int(next(group for group in found.groups() if group is not None), 16)
    if found[4] is not None:
        return bytes([code])
    return chr(code).encode("utf-8", "surrogatepass") if code < 0x110000 else found[0]


def _base64(run: bytes) -> str:
    """What a run says as base64 of either alphabet, whose end may be missing."""
    whole = run if len(run) % 4 != 1 else run[:-1]
    padded = whole.translate(_URLSAFE) + b"=" * (-len(whole) % 4)
    try:
        return _text(base64.b64decode(padded, validate=True))
    except ValueError:
        return ""


def _cut(raw: bytes) -> str:
    """A piece of a long text as text: its first and its last character can be cut. Raises UnicodeDecodeError."""
    first = next((n for n in range(4) if raw[n] & 0xC0 != 0x80), 0)
    try:
        return raw[first:].decode()
    except UnicodeDecodeError as broken:
        if broken.start < len(raw) - first - 3:
            raise
        return raw[first : first + broken.start].decode()


def _text(raw: bytes) -> str:
    """Bytes as text; empty where they are none. A few stray signs at either end make no blob of a text."""
    return _narrow(raw) or _wide(raw)


def _narrow(raw: bytes) -> str:
    """Bytes as UTF-8."""
    try:
        text = raw.decode() if len(raw) < LAP else _cut(raw)
    except UnicodeDecodeError:
        return ""
    if raw.isascii():
        return "" if raw.translate(None, _PRINTED) else text
    return text if all(char.isprintable() or char.isspace() for char in text) else ""


def _wide(raw: bytes) -> str:
    """Bytes as UTF-16 or UTF-32, if a mark says so, or if every second one is mostly 0 or that of one script."""
    if b"\0" not in raw and not raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ""  # as most that is no text
    half = len(raw) // 2
    for high, form, mark in ((raw[1::2], "utf-16-le", b"\xff\xfe"), (raw[0::2], "utf-16-be", b"\xfe\xff")):
        sample = high[:: len(high) // 16 + 1].replace(b"\0", b"")
        alike = high.count(0) + (high.count(max(sample, key=sample.count)) if sample else 0)
        if raw.startswith(mark) or alike > half * 3 // 4:
            text = raw[: 2 * half].decode(form, "replace").lstrip("\ufeff").replace("\0", "")
            if _strange(text) <= 2 + len(text) // 50:
                return text
    return ""


def _strange(text: str) -> int:
    """How many characters no text has."""
    if "".join(text.split()).isprintable():
        return text.count("\ufffd")
    return sum(char == "\ufffd" or not (char.isprintable() or char.isspace()) for char in text)
