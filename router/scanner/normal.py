"""Brings text into the one form in which patterns look at it. Pure.

What nobody sees is taken out, and what looks like a letter or digit of ASCII becomes that one: other digits, wide and
styled forms, Cyrillic and Greek look-alikes, accents, Unicode tags. Text that is ASCII already costs nothing; of other
text only its distinct characters are looked at, slice by slice, so that no single step holds Python's lock for long.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

SLICE = 8192
"""Characters that are looked at in one step: at most 16 KB of most scripts."""
FEW = 24
"""Distinct characters up to which replacing one after the other is quicker than one table."""
CONTROLS = bytes(n for n in range(32) if n not in (9, 10)) + b"\x7f"
"""Bytes nobody sees. Carriage returns too: what is left of a line's end is the newline."""
_LOOKS = (
    "аa вb еe кk мm нh оo рp сc тt уy хx ѕs іi јj ӏl һh ԁd ԛq ԝw ѵv ԍg гr пn "
    "АA ВB ЕE КK МM НH ОO РP СC ТT УY ХX ЅS ІI ЈJ ӀI ԌG ԚQ ԜW ҮY ѴV "
    "αa βb γy εe ηn ιi κk νv οo ρp τt υu χx ωw ϲc ϳj "
    "ΑA ΒB ΕE ΖZ ΗH ΙI ΚK ΜM ΝN ΟO ΡP ΤT ΥY ΧX ϹC "
    "օo ոn սu հh ցg զq ԱU ՕO ՏS ԼL "
    "ıi ȷj ɑa ɡg ɩi ʋv øo ØO đd ĐD ħh łl ŁL ŧt ƅb ƍg ƙk ɗd ɓb "
    "ᴀa ʙb ᴄc ᴅd ᴇe ꜰf ɢg ʜh ɪi ᴊj ᴋk ʟl ᴍm ɴn ᴏo ᴘp ʀr ꜱs ᴛt ᴜu ᴠv ᴡw ʏy ᴢz "
    "‐- ‑- ‒- –- —- ―- −- ⁃- ﹘- ➖- ⁄/ ∕/ ∶: ꞉: ː: 。. ․. ‚, ‘' ’' ‛' ʼ' ′' “\" ”\" „\" ‟\" ″\""
)
_LOOK_ALIKES = {pair[0]: pair[1:] for pair in _LOOKS.split(" ") if pair}
_UNSEEN = frozenset({"Cf", "Mn", "Me"})
"""Categories of characters that only change others, or that nobody sees."""
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0")
"""Letters by their category that are drawn as nothing."""
_HIDDEN = re.compile("[\U000e0020-\U000e007e\U000e0100-\U000e01ef]")
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def folded(text: str) -> str:
    """The text in its one form. Unicode tags are read as the ASCII they stand for."""
    if text.isascii():
        return text
    slices = [text[start : start + SLICE] for start in range(0, len(text), SLICE)]
    distinct: set[str] = set()
    for one in slices:
        distinct.update(one)
    changed = {}
    for char in distinct:
        if char > "\x7f" and not "\u3400" <= char <= "\u9fff" and (seen := _seen_as(char)) != char:
            changed[char] = seen
    if len(changed) <= FEW:
        for char, seen in changed.items():
            slices = [one.replace(char, seen) for one in slices]
        return "".join(slices)
    # A table has to hold every character there is: looking for one in vain is what takes long.
    table = {ord(char): changed.get(char, char) for char in distinct}
    return "".join([one.translate(table) for one in slices])


def hidden(text: str) -> str:
    """For text with tags or variation selectors that can carry letters: what is left without them, and what they say.

    Empty where there are none, which is nearly always.
    """
    if text.isascii() or _HIDDEN.search(text) is None:
        return ""
    slices = [text[start : start + SLICE] for start in range(0, len(text), SLICE)]
    carried = "".join(chr(_carried(ord(found))) for one in slices for found in _SELECTORS.findall(one))
    seen = "".join([_HIDDEN.sub("", one) for one in slices])
    return f"{folded(seen)}\n{folded(carried)}"


def encoded(text: str) -> bytes:
    """The text in its one form as UTF-8, without control characters."""
    return folded(text).encode("utf-8", "replace").translate(None, CONTROLS)


@lru_cache(maxsize=65536)
def _seen_as(char: str) -> str:
    """What a character that is no ASCII is seen as: nothing, ASCII, or itself in its plain form."""
    if (known := _special(char)) is not None:
        return known
    if (digit := unicodedata.digit(char, None)) is not None:
        return str(digit)
    plain = [one for one in unicodedata.normalize("NFKD", char) if unicodedata.category(one) not in _UNSEEN]
    if len(plain) == 1 or all(map(str.isascii, plain)):
        return "".join(_LOOK_ALIKES.get(one, one) for one in plain)
    whole = unicodedata.normalize("NFKC", char)
    return "".join(_LOOK_ALIKES.get(one, one) for one in whole)


def _special(char: str) -> str | None:
    """Characters that Unicode's own tables say nothing useful of."""
    code, category = ord(char), unicodedata.category(char)
    if 0xE0020 <= code <= 0xE007E:
        return chr(code - 0xE0000)
    if category in _UNSEEN or char in _FILLERS or 0xE0000 <= code <= 0xE0FFF:
        return ""
    if category == "Cc":
        return "\n" if code == 0x85 else ""
    if category in ("Zl", "Zp"):
        return "\n"
    if category == "Zs" or code == 0x2800:
        return " "
    for first in (0x1F1E6, 0x1F150, 0x1F170):  # letters as flags, in filled circles and squares
        if first <= code < first + 26:
            return chr(ord("A") + code - first)
    return _LOOK_ALIKES.get(char)


def _carried(code: int) -> int:
    """The byte that a variation selector can stand for."""
    return code - 0xFE00 if code < 0xFE10 else code - 0xE0100 + 16
