"""Texts for the scanner's benchmark, made from a seed: ordinary ones, and the worst that we could think of. Pure."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any

from router.scanner.reading import MOST_TEXTS

FRENCH = (
    "dès l'été la forêt s'était vidée les élèves eux étaient restés à l'école où ils répétaient une pièce de théâtre "
    "après le dîner nous irons peut-être voir la mer même s'il pleut car l'eau est déjà tiède"
)
CHINESE = "北京的秋天来得很早，街道两旁的银杏树已经变黄了。人们在公园里散步、聊天，孩子们在草地上奔跑。"
ARABIC = "في الصباح الباكر خرج الناس إلى السوق، وكان الطقس جميلاً والسماء صافية، والأطفال يلعبون في الحديقة"
ENGLISH = (
    "the function returns a list of values which are sorted by name before they are written to the table and the next "
    "one begins where it ended so that no line is read twice even where the file has changed in the meantime"
)


def ordinary(words: str, size: int, seed: int) -> str:
    """Lines of these words, so many bytes of them; of a script without spaces, its characters."""
    draw = random.Random(seed)
    gap, pieces = (" ", words.split()) if " " in words else ("", list(words))
    line: list[str] = []
    made: list[str] = []
    left = size
    while left > 0:
        line.append(draw.choice(pieces))
        left -= len((line[-1] + gap).encode())
        if len(line) == (12 if gap else 40):
            made.append(gap.join(line))
            line.clear()
    return "\n".join([*made, gap.join(line)])


def _digits(draw: random.Random, many: int) -> str:
    return "".join(draw.choices("0123456789", k=many))


ASCII: dict[str, Callable[[random.Random, int], str]] = {
    "digits": lambda draw, n: _digits(draw, n),
    "numbers of 16 digits": lambda draw, n: " ".join(_digits(draw, 16) for _ in range(n // 17)),
    "numbers of 9 digits": lambda draw, n: " ".join(_digits(draw, 9) for _ in range(n // 10)),
    "1-1-1-": lambda _, n: "1-" * (n // 2),
    "1 1 1 ": lambda _, n: "1 " * (n // 2),
    "spaced words": lambda _, n: "a b c d e f g h i j kk " * (n // 23),
    "token =": lambda _, n: "token = " * (n // 8),
    "base64, one": lambda draw, n: base64.b64encode(draw.randbytes(n * 3 // 4)).decode(),
    "base64, many": lambda draw, n: " ".join(base64.b64encode(draw.randbytes(15)).decode() for _ in range(n // 21)),
    "base64 of text": lambda _, n: " ".join(base64.b64encode(b"hello there %d" % k).decode() for k in range(n // 25)),
    "base64 twice": lambda _, n: base64.b64encode(base64.b64encode(b"hello text here " * (n // 30))).decode()[:n],
    "percent": lambda _, n: "%41" * (n // 3),
    "percent, many": lambda _, n: "%41 " * (n // 4),
    "entities": lambda _, n: "&#65;" * (n // 5),
    "escapes": lambda _, n: "\\u0041" * (n // 6),
    "quoted-printable": lambda _, n: "=41" * (n // 3),
    "e-mail addresses": lambda _, n: " ".join(f"u{k}@mail{k}.org" for k in range(n // 20)),
    "IP addresses": lambda draw, n: " ".join(
        f"{draw.randrange(224)}.{draw.randrange(256)}.7.9" for _ in range(n // 12)
    ),
    "phone numbers": lambda draw, n: " ".join(f"+49 30 {_digits(draw, 7)}" for _ in range(n // 15)),
    "account numbers": lambda draw, n: " ".join(
        f"GB{_digits(draw, 2)} WEST {_digits(draw, 14)}" for _ in range(n // 25)
    ),
    "words beside numbers": lambda _, n: "passport phone patient ssn tel born 123456789 " * (n // 46),
    "dates": lambda _, n: " ".join(f"born {k % 28 + 1:02}.{k % 12 + 1:02}.19{k % 99:02}" for k in range(n // 16)),
    "short lines": lambda _, n: "ab12 3456\n" * (n // 10),
    "lines that begin with a number": lambda _, n: "12 and\n" * (n // 7),
    "numbers at both ends of lines": lambda _, n: "one 12\ntwo\n34 three\n" * (n // 20),
    "short words": lambda _, n: "ab\ncde\n" * (n // 7),
    "blank lines": lambda _, n: "\n" * n,
    "a@a.": lambda _, n: "a@a." * (n // 4),
    "bytes in hex": lambda draw, n: " ".join(f"{draw.randrange(32, 127):02x}" for _ in range(n // 3)),
}
"""By name, what 400 KB of ASCII can be that is hard."""
OTHER: dict[str, Callable[[random.Random, int], str]] = {
    "zero-width": lambda _, n: "4\u200b1\u200b" * (n // 8),
    "fullwidth digits": lambda draw, n: _digits(draw, n // 3).translate({48 + k: 0xFF10 + k for k in range(10)}),
    "tags": lambda draw, n: _digits(draw, n // 4).translate({48 + k: 0xE0030 + k for k in range(10)}),
    "mathematical letters": lambda _, n: "𝟒𝐚" * (n // 8),
    "13,000 distinct characters": lambda draw, n: "".join(map(chr, draw.sample(range(0xA0, 0x3400), 13000) * 11))[
        : n // 3
    ],
    "combining marks": lambda _, n: "e\u0301\u0302" * (n // 5),
}
"""By name, what is hard beyond ASCII."""


def in_parts(size: int) -> dict[str, dict[str, Any]]:
    """By name, requests of at most about so many bytes in very many parts, up to what is still searched and beyond."""
    short, long = MOST_TEXTS, size // 40

    def messages(number: int, words: str) -> dict[str, Any]:
        return {"messages": [{"role": ("user", "assistant")[n % 2], "content": f"{words} {n}"} for n in range(number)]}

    return {
        f"{short:,} messages": messages(short, "a word"),
        f"{long:,} messages": messages(long, "a word"),
        f"{short:,} messages, é": messages(short, "un été"),
        f"{size // 11:,} keys": {"metadata": {f"k{n}": "v" for n in range(size // 11)}},
    }
