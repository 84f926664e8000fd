"""Pure: the ways in which private data is written so that a plain search does not see it."""

from __future__ import annotations

import base64
import codecs
import random
import urllib.parse
from collections.abc import Callable

from benchmarks.examples import Example

Disguise = Callable[[Example, random.Random], list[str]]
"""The messages in which an example stands. One, but for what is split."""
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
ALIKE = str.maketrans(
    "aceijopsxyABCEHIKMOPTX",
    "\u0430\u0441\u0435\u0456\u0458\u043e\u0440\u0455\u0445\u0443\u0391\u0412\u0421\u0415\u041d\u0406\u041a\u041c\u041e\u0420\u0422\u0425",
)
"""Letters of the Cyrillic and Greek scripts that look like Latin ones."""
ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")


def _value(change: Callable[[str, random.Random], str]) -> Disguise:
    """Only the data is disguised, not the words around it."""
    return lambda example, chance: [f"{example.before}{change(example.value, chance)}{example.after}"]


def _whole(change: Callable[[str], str]) -> Disguise:
    """The data is encoded, every other time with the words around it, and every other time behind a field's name."""

    def disguise(example: Example, chance: random.Random) -> list[str]:
        alone, name = chance.random() < 0.5, "value=" if chance.random() < 0.5 else ""
        if alone:
            return [f"{example.before}{name}{change(example.value)}{example.after}"]
        return [f"decode this: {name}{change(example.before + example.value + example.after)} and go on"]

    return disguise


def _cut(value: str, chance: random.Random) -> int:
    return chance.randint(max(1, len(value) // 3), max(1, len(value) - max(1, len(value) // 3)))


def _zero_width(value: str, chance: random.Random) -> str:
    return "".join(letter + (chance.choice(INVISIBLE) if chance.random() < 0.6 else "") for letter in value)


def _newline(value: str, chance: random.Random) -> str:
    cut = _cut(value, chance)
    return f"{value[:cut]}\n{value[cut:]}"


def _split(example: Example, chance: random.Random) -> list[str]:
    cut = _cut(example.value, chance)
    return [f"{example.before}{example.value[:cut]}", f"{example.value[cut:]}{example.after}"]


DISGUISES: dict[str, Disguise] = {
    "plain": _value(lambda value, _: value),
    "zero-width": _value(_zero_width),
    "fullwidth": _value(lambda value, _: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in value)),
    "Unicode tags": _value(lambda value, _: "".join(chr(0xE0000 + ord(c)) if " " <= c <= "~" else c for c in value)),
    "Arabic digits": _value(lambda value, _: value.translate(ARABIC)),
    "homoglyphs": _value(lambda value, _: value.translate(ALIKE)),
    "base64": _whole(lambda text: base64.b64encode(text.encode()).decode()),
    "hex": _whole(lambda text: text.encode().hex()),
    "percent": _whole(lambda text: "".join(f"%{byte:02X}" for byte in text.encode())),
    "in an address": _value(lambda value, _: f"https://pay.example/?value={urllib.parse.quote(value, safe='')}&go=on"),
    "HTML entities": _whole(lambda text: "".join(f"&#{ord(letter)};" for letter in text)),
    "\\u escapes": _whole(lambda text: "".join(f"\\u{ord(letter):04x}" for letter in text)),
    "split over two messages": _split,
    "newline inside": _value(_newline),
    "spaced": _value(lambda value, _: " ".join(value)),
    "rot13": _value(lambda value, _: codecs.encode(value, "rot13")),
    "reversed": _value(lambda value, _: value[::-1]),
}
GOALS: dict[str, float | None] = {
    name: 0.99 if name == "plain" else 0.8 if name == "spaced" else None if name in ("rot13", "reversed") else 0.95
    for name in DISGUISES
}
"""The share that must be found; None is reported only."""
