"""Pure: what a candidate must pass beside its pattern: check digits, issuer ranges, dates, what is random enough.

Every check is given the text up to the end of a match and finds the start itself, from the right; see `kinds.Check`.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from collections.abc import Callable

import phonenumbers
from stdnum import bic as stdnum_bic
from stdnum import iban as stdnum_iban

from router.scanner.kinds import Check

_SEPARATOR = r"[ .+-]"
"""Between groups of a number; + is how a form in an address writes a space."""
_TAIL_OF_DIGITS = re.compile(r"[0-9][0-9 .+-]*$")
_CARD = re.compile(
    rf"[0-9]{{12,19}}|[0-9]{{4}}({_SEPARATOR})[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{1,4}}(?:\1[0-9]{{1,3}})?"
    rf"|[0-9]{{4}}({_SEPARATOR})[0-9]{{6}}\2[0-9]{{4,5}}"
)
_IBAN_START = re.compile(r"(?<![0-9A-Za-z])(?=[A-Za-z]{2}[0-9]{2})")
_PHONE = re.compile(r"(?<![0-9A-Za-z])\+[0-9][0-9 ()./-]*$")
_ISSUERS: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (4000, 4999, (13, 16, 19)),  # Visa
    (5100, 5599, (16,)),  # Mastercard
    (2221, 2720, (16,)),
    (3400, 3499, (15,)),  # American Express
    (3700, 3799, (15,)),
    (3000, 3059, (14, 16)),  # Diners Club
    (3095, 3095, (14, 16)),
    (3600, 3699, (14, 16)),
    (3800, 3999, (14, 16)),
    (6011, 6011, (16, 19)),  # Discover
    (6440, 6599, (16, 19)),
    (3500, 3599, (16, 19)),  # JCB, and what test data takes for it
    (2131, 2131, (15,)),
    (1800, 1800, (15,)),
    (6200, 6299, (16, 17, 18, 19)),  # UnionPay
    (8100, 8199, (16,)),
    (2200, 2204, (16,)),  # Mir
    (9792, 9792, (16,)),  # Troy
    (5060, 5079, (16, 18, 19)),  # Verve, Elo
    (5018, 5020, (12, 13, 14, 15, 16, 17, 18, 19)),  # Maestro
    (5038, 5038, (12, 13, 14, 15, 16, 17, 18, 19)),
    (5600, 5899, (12, 13, 16)),
    (6304, 6304, (12, 13, 14, 15, 16, 17, 18, 19)),
    (6390, 6390, (12, 13, 14, 15, 16, 17, 18, 19)),
    (6759, 6763, (12, 13, 14, 15, 16, 17, 18, 19)),
)
"""First and last value of a card number's first four digits, and how long such a number is."""
_DATE = re.compile(
    r"(?<![0-9])(?:(?P<y>(?:18|19|20)[0-9]{2})[./ -](?P<m>[0-9]{1,2})[./ -](?P<d>[0-9]{1,2})"
    r"|(?P<a>[0-9]{1,2})[./ -](?P<b>[0-9]{1,2})[./ -](?P<yy>(?:(?:18|19|20)?[0-9]{2})))$"
)
_ISO_DAY = re.compile(r"(?:19|20)[0-9]{2}([./-])[01][0-9]\1[0-3][0-9]")
OLDEST = 1880
_FREE = r"(?<![0-9A-Za-z_])(?<![0-9][./,:+])(?<!(?-i:[0-9a-f])-)"
"""Before a number that stands for itself: no word, no other part of a decimal number, version, time or UUID."""


def number(form: str, valid: Callable[[str], bool]) -> Check:
    """A check of numbers of one form that ends the text, whole: it is no part of a longer number or word."""
    find = re.compile(rf"{_FREE}(?:{form})$", re.IGNORECASE | re.ASCII)

    def check(text: str) -> bool:
        found = find.search(text)
        return found is not None and len(set(found[0])) > 2 and valid(found[0].upper())

    return check


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others, as on payment cards."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = ord(digit) - 48
        total += value if place % 2 == 0 else (value * 2 if value < 5 else value * 2 - 9)
    return total % 10 == 0


def card(text: str) -> bool:
    """A payment card: length and first digits of an issuer, groups as cards have them, and the check digit."""
    tail = _TAIL_OF_DIGITS.search(text[-32:])
    if tail is None:
        return False
    run, before = tail[0], text[-32:][: tail.start()][-2:]
    starts = [m.start() for m in re.finditer(r"(?<![0-9])(?<![0-9]\.)[0-9]", run)]
    return any(_card(run[start:]) for start in starts if start or not _joined(before))


def _joined(before: str) -> bool:
    """Whether what follows belongs to a longer word or number."""
    return bool(before) and (before[-1].isalnum() or before[-1] in "_.")


def _card(run: str) -> bool:
    if _CARD.fullmatch(run) is None:
        return False
    digits = re.sub(_SEPARATOR, "", run)
    first = int(digits[:4])
    length = len(digits)
    return any(low <= first <= high and length in lengths for low, high, lengths in _ISSUERS) and luhn(digits)


def iban(text: str) -> bool:
    """An account number: the country's form, and 1 left over 97."""
    tail = text[-44:]
    for start in _IBAN_START.finditer(tail):
        compact = re.sub(_SEPARATOR, "", tail[start.start() :]).upper()
        if 15 <= len(compact) <= 34 and compact.isalnum() and compact.isascii() and _rest_97(compact) == 1:
            return bool(stdnum_iban.is_valid(compact, check_country=False))
    return False


def _rest_97(compact: str) -> int:
    turned = compact[4:] + compact[:4]
    return int("".join(str(int(letter, 36)) for letter in turned)) % 97


def bic(text: str) -> bool:
    """A bank's code: its form and a country that exists."""
    found = re.search(r"(?<![0-9A-Za-z])[A-Z]{6}[A-Z0-9]{2}(?:[A-Z0-9]{3})?$", text)
    return found is not None and bool(stdnum_bic.is_valid(found[0])) and found[0][4:6] in COUNTRIES


COUNTRIES = frozenset(re.findall("..", (
    "ADAEAFAGALAMAOARATAUAZBABBBDBEBGBHBJBMBNBOBRBSBWBYBZCACDCHCICLCMCNCOCRCUCVCYCZDEDKDODZECEEEGESETFIFRGAGBGEGHGI"
    "GRGTHKHNHRHUIDIEILINIQIRISITJMJOJPKEKHKRKWKYKZLALBLILKLTLULVLYMAMCMDMEMGMKMLMMMNMOMTMUMVMXMYMZNANGNINLNONPNZOMPA"
    "PEPHPKPLPSPTPYQARORSRURWSASCSESGSISKSMSNSVSYTHTNTRTTTWTZUAUGUSUYUZVAVEVGVNXKYEZAZMZW"
)))  # fmt: skip
"""Countries whose banks are looked for."""


def phone(text: str) -> bool:
    """An international number that some country could give out."""
    found = _PHONE.search(text[-32:])
    if found is None:
        return False
    try:
        return phonenumbers.is_possible_number(phonenumbers.parse(found[0]))
    except phonenumbers.NumberParseException:
        return False


def some_digits(least: int, most: int) -> Check:
    """Between so many digits, in the run of digits and what stands between them that ends the text."""

    def check(text: str) -> bool:
        found = re.search(r"(?<![0-9A-Za-z.])[(+]*[0-9][0-9 ()./+-]*$", text[-32:])
        if found is None or _ISO_DAY.match(found[0]) or (_DATE.match(found[0]) and birthday(found[0])):
            return False
        digits = sum(map(str.isdigit, found[0]))
        return least <= digits <= most and len(set(found[0])) > 2

    return check


def birthday(text: str) -> bool:
    """A date on which somebody who lives could have been born; a day of this year's is as likely something else."""
    found = _DATE.search(text[-16:])
    if found is None:
        return True  # written with a month's name: the pattern has seen what there is to see
    parts = found.groupdict()
    if parts["y"]:
        return _is_date(int(parts["y"]), int(parts["m"]), int(parts["d"]))
    year, one, other = int(parts["yy"]), int(parts["a"]), int(parts["b"])
    if len(parts["yy"]) == 2:
        year += 1900
    return _is_date(year, other, one) or _is_date(year, one, other)


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        return dt.date(year, month, day).year >= OLDEST
    except ValueError:
        return False


def ip(text: str) -> bool:
    """An address that stands alone: four numbers of a version or of a longer name are none."""
    found = re.search(r"(?<![0-9A-Za-z_.:-])[0-9A-Fa-f:.]{3,45}$", text[-48:])
    if found is None:
        return False
    try:
        address = ipaddress.ip_address(found[0])
    except ValueError:
        return False
    return address.version == 4 or len(found[0]) > 6


def has_digits(text: str) -> bool:
    """Some digits, and not one of them alone over and over."""
    digits = [letter for letter in text if letter.isdigit()]
    return len(digits) >= 4 and len(set(digits)) > 1


def hardware(text: str) -> bool:
    """An address of a network card: not one digit over and over."""
    return len(set(re.sub("[^0-9a-f]", "", text.lower()))) > 2


def address(text: str) -> bool:
    """A house number that is one: not a year of a sentence, not zero."""
    return re.search(r"[1-9]", text) is not None
