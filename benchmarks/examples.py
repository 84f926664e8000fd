"""Made-up private data of every kind, by the kind's name: always other ones, valid, and nobody's.

Nothing that looks like somebody's secret stands in a file: it is put together here when it is needed. The forms of
credentials come from the scanner's own table, so their recall says that the search works, not that a maker's form is
what we believe it to be; everything else is written down here a second time.
"""

from __future__ import annotations

import base64
import random
import re
import string
import uuid
from collections.abc import Callable
from typing import NamedTuple

from stdnum import get_cc_module

from router.scanner import forms
from router.scanner.credentials import forms as credential_forms


class Example(NamedTuple):
    """One piece of private data in the words somebody would put around it."""

    before: str
    value: str
    after: str = ""


Make = Callable[[random.Random], Example]
_TOKEN = re.compile(r"<(\w+)>|\[([^\]]+)\]|(.)", re.DOTALL)
_GIVEN = ("Anna", "Luis", "Marek", "Yuki", "Fatima", "Sven", "Chloe", "Tomas", "Ingrid", "Paolo", "Aisha", "Piotr")
_FAMILY = ("Keller", "Moreau", "Nowak", "Larsen", "Rossi", "Okafor", "Jansen", "Silva", "Novak", "Berg", "Haddad")
_HOSTS = ("brightmail", "postwerk", "northwind-traders", "acmecorp", "fastpost", "bluewave", "heimnetz", "laposte-pro")
_ENDS = ("com", "net", "org", "de", "fr", "co.uk", "io", "eu", "com.br", "jp", "se")
_STREETS = (
    "<n> <Name> Street", "<n> Old <Name> Road", "<n> <Name> Avenue", "<Name>straße <n>", "<n> rue du <Name>",
    "Calle <Name> <n>", "Via <Name> <n>", "<Name>laan <n>", "PO Box <n>", "<n>, avenue de <Name>", "<Name>gatan <n>",
)  # fmt: skip
_ISSUERS = (
    ("4", 16),
    ("51", 16),
    ("55", 16),
    ("2223", 16),
    ("34", 15),
    ("37", 15),
    ("6011", 16),
    ("3530", 16),
    ("36", 14),
)
_IBANS = {
    "DE": "##################", "FR": "#######################", "GB": "@@@@##############", "NL": "@@@@##########",
    "ES": "####################", "IT": "@######################", "BE": "############", "CH": "#################",
    "AT": "################", "PL": "########################", "SE": "####################", "NO": "###########",
    "DK": "##############", "FI": "##############", "IE": "@@@@##############", "PT": "#####################",
}  # fmt: skip
NATIONAL: dict[str, tuple[str, str, str]] = {
    "ar": ("ar.cuit", "[2]0-########-#", "CUIT"), "at": ("at.vnr", "#### <dmy>", "SVNR"),
    "au": ("au.tfn", "### ### ###", "tax file number"), "be": ("be.nn", "<y.m.d>-###.##", "rijksregisternummer"),
    "bg": ("bg.egn", "<ymd>####", "EGN"), "br": ("br.cpf", "###.###.###-##", "CPF"),
    "ca": ("ca.sin", "[1234567]##-###-###", "SIN"), "ch": ("ch.ssn", "756.####.####.##", "AHV"),
    "cl": ("cl.rut", "1#.###.###-#", "RUT"), "cn": ("cn.ric", "110101<ymd8>####", "身份证"),
    "cz": ("cz.rc", "<ymd>/####", "rodné číslo"), "de": ("de.idnr", "###########", "Steuer-ID"),
    "dk": ("dk.cpr", "<dmy>-####", "CPR"), "ee": ("ee.ik", "[34]<ymd>####", "isikukood"),
    "es": ("es.dni", "########@", "DNI"), "fi": ("fi.hetu", "<dmy>-###@", "henkilötunnus"),
    "fr": ("fr.nir", "[12] <y> 0# 75 ### ### ##", "numéro de sécurité sociale"),
    "gb": ("", "JG ## ## ## [ABCD]", "NINO"),
    "gr": ("gr.amka", "<dmy>#####", "AMKA"), "ie": ("ie.pps", "#######@", "PPS"),
    "il": ("il.idnr", "#########", "teudat zehut"), "in": ("in_.aadhaar", "[3456789]### #### ####", "Aadhaar"),
    "it": ("it.codicefiscale", "RSSMRA##[ABCDEHLMPRST]1#H501@", "codice fiscale"),
    "kr": ("kr.rrn", "<ymd>-[12]######", "RRN"), "mx": ("mx.curp", "GOMC<ymd>HDFNRR0#", "CURP"),
    "sg": ("sg.nric", "S#######@", "NRIC"),
    "nl": ("nl.bsn", "#########", "BSN"),
    "no": ("no.fodselsnummer", "<dmy> #####", "fødselsnummer"), "pl": ("pl.pesel", "<ymd>#####", "PESEL"),
    "pt": ("pt.nif", "[123]########", "NIF"), "ro": ("ro.cnp", "[12]<ymd>12####", "CNP"),
    "se": ("se.personnummer", "<ymd>-####", "personnummer"), "th": ("th.pin", "[1-5]-####-#####-##-#", "PIN"),
    "tr": ("tr.tckimlik", "[123456789]##########", "TC kimlik"), "us": ("us.ssn", "[1234]##-##-####", "SSN"),
    "za": ("za.idnr", "<ymd>####08#", "ID number"),
}  # fmt: skip
"""By country: the module of python-stdnum that knows the check digits, the form, and what people call it."""


def filled(chance: random.Random, form: str) -> str:
    """A text of this form: `#` a digit, `@` a capital, `[abc]` one of these, `<ymd>` a date, `<Name>` a name."""
    year, month, day = chance.randint(1940, 1999), chance.randint(1, 12), chance.randint(1, 28)
    named = {
        "ymd": f"{year % 100:02}{month:02}{day:02}", "dmy": f"{day:02}{month:02}{year % 100:02}",
        "y": f"{year % 100:02}",
        "ymd8": f"{year}{month:02}{day:02}", "y.m.d": f"{year % 100:02}.{month:02}.{day:02}",
        "Name": chance.choice(_FAMILY), "n": str(chance.randint(2, 400)),
    }  # fmt: skip
    form = form.replace("<y.m.d>", named["y.m.d"])

    def one(found: re.Match[str]) -> str:
        name, choices, letter = found.groups()
        if name:
            return named[name]
        if choices:
            return str(chance.choice(choices.replace("1-5", "12345")))
        return {"#": str(chance.randint(0, 9)), "@": chance.choice(string.ascii_uppercase)}.get(letter, letter)

    return _TOKEN.sub(one, form)


def national(country: str) -> Make:
    """Numbers of one country that pass its check."""
    module, form, label = NATIONAL[country]

    def make(chance: random.Random) -> Example:
        valid = _valid(module)
        for _ in range(100_000):
            text = filled(chance, form)
            if valid(text):
                return Example(f"{label}: ", text)
        raise ValueError(f"no number of {country} was found")

    return make


def _valid(module: str) -> Callable[[str], bool]:
    if not module:
        return lambda _: True
    if module == "sg.nric":  # python-stdnum does not know it
        return lambda text: (
            text[8] == "JZIHGFEDCBA"[sum(map(int.__mul__, (2, 7, 6, 5, 4, 3, 2), map(int, text[1:8]))) % 11]
        )
    country, name = module.split(".")
    found = get_cc_module(country.rstrip("_"), name)
    if found is None:
        raise ValueError(f"python-stdnum has no {module}")
    return lambda text: bool(found.is_valid(text.replace(" ", "").replace(".", "").replace("-", "")
                                            if country in ("ch", "za", "au", "th") else text))  # fmt: skip


def email(chance: random.Random) -> Example:
    """An address at no example domain."""
    sign = chance.choice((".", "_", "", "-"))
    name = f"{chance.choice(_GIVEN)}{sign}{chance.choice(_FAMILY)}{chance.choice(('', str(chance.randint(1, 99))))}"
    return Example(
        chance.choice(("my mail is ", "write to ", "")),
        f"{name.lower()}@{chance.choice(_HOSTS)}.{chance.choice(_ENDS)}",
    )


def phone(chance: random.Random) -> Example:
    """A number in one of the ways people write theirs."""
    form = chance.choice((
        "+1 212 [3456]## ####", "+44 20 7[49]## ####", "+49 30 [1-5]#######", "+33 6 ## ## ## ##",
        "(415) [3456]##-####", "+86 138 #### ####", "212-[3456]##-####", "+91 98### #####", "+55 11 9####-####",
    ))  # fmt: skip
    return Example(chance.choice(("call me at ", "phone: ", "tel ")), filled(chance, form))


def address(chance: random.Random) -> Example:
    return Example("I live at ", filled(chance, chance.choice(_STREETS)))


def card(chance: random.Random) -> Example:
    """A number of an issuer's range with its check digit, in one run or in groups."""
    start, size = chance.choice(_ISSUERS)
    digits = start + "".join(str(chance.randint(0, 9)) for _ in range(size - len(start) - 1))
    digits += next(last for last in string.digits if _luhn(digits + last))
    gap = chance.choice(("", " ", "-"))
    cut = (4, 10, size) if size < 16 else (4, 8, 12, 16)
    groups = [digits[start:end] for start, end in zip((0, *cut), cut, strict=False)]
    return Example(chance.choice(("card ", "my credit card is ", "pay with ")), gap.join(groups))


def _luhn(digits: str) -> bool:
    doubled = [int(d) * (2 if place % 2 else 1) for place, d in enumerate(reversed(digits))]
    return sum(value // 10 + value % 10 for value in doubled) % 10 == 0


def iban(chance: random.Random) -> Example:
    """An account number of one country, its two check digits computed."""
    country = chance.choice(sorted(_IBANS))
    for _ in range(10_000):
        account = filled(chance, _IBANS[country])
        number = "".join(str(int(letter, 36)) for letter in account + country + "00")
        whole = f"{country}{98 - int(number) % 97:02}{account}"
        module = get_cc_module(country.lower(), "iban")
        if country not in ("BE", "ES") or module is None or module.is_valid(whole):
            break
    apart = " ".join(whole[start : start + 4] for start in range(0, len(whole), 4))
    return Example(chance.choice(("IBAN ", "please pay to ", "")), chance.choice((whole, apart)))


def bic(chance: random.Random) -> Example:
    return Example("BIC: ", filled(chance, f"@@@@{chance.choice(('DE', 'FR', 'GB', 'US', 'CH', 'NL'))}[FLM2][FLM2]"))


def passport(chance: random.Random) -> Example:
    return Example(chance.choice(("passport no. ", "Reisepass: ", "passport number ")), filled(chance, chance.choice((
        "[123456789]########", "C#[FGHJK]######", "[AB]########", "@@#######", "##[A]#####".replace("[A]", "##"),
    ))))  # fmt: skip


def birth(chance: random.Random) -> Example:
    """A date of birth in figures or words."""
    year, month, day = chance.randint(1930, 2010), chance.randint(1, 12), chance.randint(1, 28)
    name = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
            "November", "December")[month - 1]  # fmt: skip
    said = chance.choice((
        f"{day:02}/{month:02}/{year}", f"{year}-{month:02}-{day:02}", f"{day}.{month}.{year}", f"{day} {name} {year}",
        f"{name} {day}, {year}",
    ))  # fmt: skip
    return Example(chance.choice(("born on ", "date of birth: ", "DOB ", "geboren am ")), said)


def ip(chance: random.Random) -> Example:
    """An address of version 4 that is somebody's."""
    return Example(
        "the server is ",
        f"{chance.choice((5, 23, 46, 80, 93, 146))}." + ".".join(str(chance.randint(1, 254)) for _ in "123"),
    )


def ip6(chance: random.Random) -> Example:
    groups = [f"{chance.randint(4096, 65535):x}" for _ in range(6)]
    return Example("the server is ", "2a02:26f0:" + ":".join(groups))


def mac(chance: random.Random) -> Example:
    return Example("its MAC is ", chance.choice((":", "-")).join(f"{chance.randint(1, 254):02x}" for _ in range(6)))


def medical_record(chance: random.Random) -> Example:
    return Example(chance.choice(("MRN: ", "patient ID ", "medical record number ")), filled(chance, chance.choice((
        "########", "MR######", "###-##-###", "[1-5]######",
    ))))  # fmt: skip


def medical_insurance(chance: random.Random) -> Example:
    """A member's number of an insurer."""
    form = chance.choice(("XYZ#########", "1EG4-TE[1-5]-MK##", "A#########", "W##########"))
    return Example(chance.choice(("member ID: ", "health insurance number ", "policy number ")), filled(chance, form))


def credential(name: str) -> Make:
    """A token of one maker."""
    found = credential_forms()[name]

    def make(chance: random.Random) -> Example:
        return Example(chance.choice(("use ", "key ", "")), forms.example(chance.choice(found), chance.choice))

    return make


def private_key(chance: random.Random) -> Example:
    """A key's file, its header as the tools write it."""
    word = chance.choice(("RSA ", "EC ", "", "OPENSSH ", "ENCRYPTED "))
    lines = "\n".join(base64.b64encode(chance.randbytes(48)).decode() for _ in range(6))
    edge = "-" * 5
    return Example("", f"{edge}BEGIN {word}PRIVATE KEY{edge}\n{lines}\n{edge}END {word}PRIVATE KEY{edge}")


def jwt(chance: random.Random) -> Example:
    """A signed token."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    head = part(b'{"alg":"HS256","typ":"JWT"}')
    claims = part(b'{"sub":"%d"}' % chance.randint(10**9, 10**10))
    return Example("token ", f"{head}.{claims}.{part(chance.randbytes(32))}")


def password(chance: random.Random, size: int = 14) -> str:
    """Letters, digits and signs, some of each."""
    some = [chance.choice(string.ascii_letters) for _ in range(size - 4)] + [
        chance.choice(string.digits) for _ in range(3)
    ]
    chance.shuffle(some)
    return "".join(some) + chance.choice("!#*+")


def connection_string(chance: random.Random) -> Example:
    """A database's address with a password in it."""
    way = chance.choice(("postgresql", "mysql", "mongodb+srv", "redis", "amqp"))
    return Example(
        "", f"{way}://app:{password(chance).rstrip('!#*+')}@db{chance.randint(1, 9)}.corp.internal:5432/main"
    )


def assignment(chance: random.Random) -> Example:
    """A line of a settings file."""
    name = chance.choice(("DB_PASSWORD=", "api_key: ", "client_secret = ", "password: ", '"auth_token": '))
    value = password(chance, 20)
    return Example("", f'{name}"{value}"' if '"' in name else f"{name}{value}")


def vendor(chance: random.Random) -> Example:
    """What a setting that is named after its vendor is given; some vendors give out UUIDs."""
    small = string.ascii_lowercase + string.digits
    word, size = chance.choice((
        ("algolia", 32), ("DATADOG", 40), ("etsy", 24), ("fastly", 32), ("flickr", 32), ("mattermost", 26),
        ("okta", 42), ("twitch", 30), ("sonar", 40), ("heroku", 0), ("squarespace", 0), ("kucoin", 0),
    ))  # fmt: skip
    value = "".join(chance.choice(small) for _ in range(size)) or str(uuid.UUID(int=chance.getrandbits(128)))
    name = word + chance.choice((" = ", ": ", "="))
    return Example(name, value)


PERSONAL: dict[str, Make] = {
    "email": email, "phone": phone, "address": address, "card": card, "iban": iban, "bic": bic, "passport": passport,
    "birth": birth, "ip": ip, "mac": mac, "medical_record": medical_record, "medical_insurance": medical_insurance,
}  # fmt: skip
CREDENTIALS: dict[str, Make] = {
    **{name: credential(name) for name in credential_forms()},
    "credential_private_key": private_key, "credential_jwt": jwt, "credential_connection_string": connection_string,
    "credential_assignment": assignment, "credential_vendor": vendor,
}  # fmt: skip
EXAMPLES: dict[str, Make] = {
    **PERSONAL, **{f"national_id_{country}": national(country) for country in NATIONAL}, **CREDENTIALS,
}  # fmt: skip
"""A maker of examples for every kind that is shipped, but for those that are made of two others."""
