"""Pure: numbers that states give to people, in 33 countries, by their forms and check digits."""

from __future__ import annotations

import re
from collections.abc import Callable

from stdnum.ar import cuit
from stdnum.at import vnr
from stdnum.au import tfn
from stdnum.be import nn
from stdnum.bg import egn
from stdnum.br import cpf
from stdnum.ca import sin
from stdnum.ch import ssn as ch_ssn
from stdnum.cl import rut
from stdnum.cn import ric
from stdnum.cz import rc
from stdnum.de import idnr as de_idnr
from stdnum.dk import cpr
from stdnum.ee import ik
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.gr import amka
from stdnum.ie import pps
from stdnum.il import idnr as il_idnr
from stdnum.in_ import aadhaar, pan
from stdnum.it import codicefiscale
from stdnum.kr import rrn
from stdnum.mx import curp
from stdnum.nl import bsn
from stdnum.no import fodselsnummer
from stdnum.pl import pesel
from stdnum.pt import cc as pt_cc
from stdnum.pt import nif
from stdnum.ro import cnp
from stdnum.se import personnummer
from stdnum.th import pin
from stdnum.tr import tckimlik
from stdnum.us import itin, ssn
from stdnum.za import idnr as za_idnr

from router.scanner.checks import number
from router.scanner.kinds import Kind
from serving.catalogue import DataClass

_NO_NINO = frozenset({"BG", "GB", "NK", "KN", "TN", "NT", "ZZ"})
_NRIC = (2, 7, 6, 5, 4, 3, 2)
_TAX = ("tax id", "tax number", "taxpayer", "tin")
_NATIONAL = (
    "national id", "national identity", "identity number", "id number", "id card", "identity card", "personal id",
)  # fmt: skip


def nino(text: str) -> bool:
    """A British National Insurance number: prefixes that are given out."""
    return text[:2] not in _NO_NINO


def nric(text: str) -> bool:
    """A Singaporean identity number: its last letter is computed from the digits."""
    total = sum(weight * int(digit) for weight, digit in zip(_NRIC, text[1:8], strict=True))
    letters = {"S": "JZIHGFEDCBA", "T": "JZIHGFEDCBA", "F": "XWUTRQPNMLK", "G": "XWUTRQPNMLK"}
    return letters[text[0]][(total + (4 if text[0] in "TG" else 0)) % 11] == text[8]


def _row(
    country: str, form: str, valid: Callable[[str], bool], planted: str, *context: str, caseless: bool = True
) -> Kind:
    check = number(form, valid)
    pattern = rf"\b(?:{form})\b"
    said = f"{context[0]}: {planted}" if context else planted
    return Kind(
        f"national_id_{country}", DataClass.private, (pattern,), check, caseless, context, (said,), 32, in_pieces=True
    )


def _spaceless(valid: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda text: valid(re.sub(r"[\s.-]", "", text))


NATIONAL: tuple[Kind, ...] = (
    _row("ar", r"(?:20|23|24|27)-[0-9]{8}-[0-9]", cuit.is_valid, "20-05536168-?"),
    _row("at", r"[1-9][0-9]{3} ?[0-3][0-9][01][0-9]{3}", vnr.is_valid, "123? 010180",
         "svnr", "sozialversicherungsnummer", "versicherungsnummer", "sv-nummer", "sv nummer", "austrian"),
    _row("au", r"[0-9]{3} ?[0-9]{3} ?[0-9]{3}", _spaceless(tfn.is_valid), "123 456 78?", "tfn", "tax file number"),
    _row("be", r"[0-9]{2}[. ]?[0-9]{2}[. ]?[0-9]{2}[- ]?[0-9]{3}[. ]?[0-9]{2}", nn.is_valid, "85.07.30-033.??"),
    _row("bg", r"[0-9]{2}[0-5][0-9][0-3][0-9]{5}", egn.is_valid, "752316926?", "egn", "егн", "bulgarian", *_NATIONAL),
    _row("br", r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", cpf.is_valid, "390.533.447-??"),
    _row("br", r"[0-9]{11}", cpf.is_valid, "390533447??", "cpf", "brazilian", "brasil", "contribuinte"),
    _row("ca", r"[1-79][0-9]{2}[ -]?[0-9]{3}[ -]?[0-9]{3}", sin.is_valid, "123 456 78?",
         "sin", "social insurance", "canadian", "nas"),
    _row("ch", r"756[. ]?[0-9]{4}[. ]?[0-9]{4}[. ]?[0-9]{2}", _spaceless(ch_ssn.is_valid), "756.9217.0769.8?"),
    _row("cl", r"[0-9]{1,2}\.[0-9]{3}\.[0-9]{3}-[0-9K]", rut.is_valid, "12.531.909-?"),
    _row("cn", r"[1-9][0-9]{5}(?:19|20)[0-9]{2}[01][0-9][0-3][0-9]{4}[0-9X]", ric.is_valid, "36042619910101007?"),
    _row("cz", r"[0-9]{2}[0-8][0-9][0-3][0-9]/[0-9]{3,4}", rc.is_valid, "710319/274?"),
    _row("cz", r"[0-9]{2}[0-8][0-9][0-3][0-9]{5}", rc.is_valid, "710319274?", "rodné číslo", "rodne cislo", "rč",
         "czech", "slovak", "birth number", *_NATIONAL),
    _row("de", r"[1-9][0-9] ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}", de_idnr.is_valid, "36 574 261 80?"),
    _row("dk", r"[0-3][0-9][01][0-9]{3}-[0-9]{4}", cpr.is_valid, "211062-562?"),
    _row("dk", r"[0-3][0-9][01][0-9]{7}", cpr.is_valid, "211062562?", "cpr", "cpr-nr", "personnummer",
         "danish", *_NATIONAL),
    _row("ee", r"[1-6][0-9]{2}[01][0-9][0-3][0-9]{5}", ik.is_valid, "3680521001?"),
    _row("es", r"[0-9]{8}-?[A-HJ-NP-TV-Z]", dni.is_valid, "54362315?"),
    _row("es", r"[XYZ]-?[0-9]{7}-?[A-HJ-NP-TV-Z]", nie.is_valid, "X-2482300?"),
    _row("fi", r"[0-3][0-9][01][0-9]{3}[-+ABCDEFYXWVU][0-9]{3}[0-9A-FHJ-NPR-Y]", hetu.is_valid, "131052-308?"),
    _row("fr", r"[12378] ?[0-9]{2} ?[0-9]{2} ?[0-9][0-9AB] ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}", nir.is_valid,
         "2 95 10 99 126 111 ??"),
    _row("gb", r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]", nino, "JG 10 37 59 ?"),
    _row("gr", r"[0-3][0-9][01][0-9]{8}", amka.is_valid, "0101343116?"),
    _row("ie", r"[0-9]{7}[A-W][ABHWTX]?", pps.is_valid, "6433435?", "pps", "ppsn", "pps number", "irish", *_NATIONAL),
    _row("il", r"[0-9]{9}", il_idnr.is_valid, "03933742?", "teudat zehut", "tz number", "israeli",
         "תעודת זהות", *_NATIONAL),
    _row("in", r"[2-9][0-9]{3}[ -]?[0-9]{4}[ -]?[0-9]{4}", aadhaar.is_valid, "2341 2341 234?", "aadhaar", "aadhar",
         "uidai", "uid", "आधार"),
    _row("in", r"[A-Z]{3}[ABCFGHJLPT][A-Z][0-9]{4}[A-Z]", pan.is_valid, "ACUPA7085?", caseless=False),
    _row("it", r"[A-Z]{6}[0-9LMNP-V]{2}[ABCDEHLMPRST][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z]", codicefiscale.is_valid,
         "RCCMNL83S18D969?"),
    _row("kr", r"[0-9]{2}[01][0-9][0-3][0-9]-[0-9]{7}", rrn.is_valid, "971013-901990?"),
    _row("mx", r"[A-Z]{4}[0-9]{2}[01][0-9][0-3][0-9][HMX][A-Z]{5}[0-9A-Z][0-9]", curp.is_valid, "BOXW310820HNERXN0?"),
    _row("nl", r"[0-9]{4}[. ]?[0-9]{2}[. ]?[0-9]{3}", bsn.is_valid, "1112.22.33?", "bsn", "burgerservicenummer",
         "sofinummer", "dutch", *_NATIONAL),
    _row("no", r"[0-7][0-9][0-5][0-9]{3} ?[0-9]{5}", fodselsnummer.is_valid, "151086 950??"),
    _row("pl", r"[0-9]{2}[0-389][0-9][0-3][0-9]{6}", pesel.is_valid, "4405140135?"),
    _row("pt", r"[0-9]{8} ?[0-9] ?[A-Z]{2}[0-9]", pt_cc.is_valid, "12345678 ? ZZ4"),
    _row("pt", r"[12356789][0-9]{2} ?[0-9]{3} ?[0-9]{3}", nif.is_valid, "50196484?", "nif", "contribuinte", *_TAX),
    _row("ro", r"[1-9][0-9]{2}[01][0-9][0-3][0-9]{7}", cnp.is_valid, "163061512345?"),
    _row("se", r"(?:19|20)?[0-9]{2}[01][0-9][0-3][0-9][-+][0-9]{4}", personnummer.is_valid, "880320-001?"),
    _row("se", r"(?:19|20)?[0-9]{2}[01][0-9][0-3][0-9]{5}", personnummer.is_valid, "880320001?", "personnummer",
         "personal number", "swedish", *_NATIONAL),
    _row("sg", r"[STFG][0-9]{7}[A-Z]", nric, "S1234567?"),
    _row("th", r"[1-8][ -][0-9]{4}[ -][0-9]{5}[ -][0-9]{2}[ -][0-9]", _spaceless(pin.is_valid),
         "1-2345-45678-78-?"),
    _row("th", r"[1-8][0-9]{12}", pin.is_valid, "123454567878?", "thai", "thailand", "pin", *_NATIONAL),
    _row("tr", r"[1-9][0-9]{10}", tckimlik.is_valid, "173872982??", "kimlik", "tckn", "turkish",
         *_NATIONAL),
    _row("us", r"[0-9]{3}-[0-9]{2}-[0-9]{4}", ssn.is_valid, "536-90-439?"),
    _row("us", r"[0-9]{3}[. ]?[0-9]{2}[. ]?[0-9]{4}", _spaceless(ssn.is_valid), "536 90 439?", "ssn", "social security",
         "soc sec"),
    _row("us", r"9[0-9]{2}-[5-9][0-9]-[0-9]{4}", itin.is_valid, "912-90-345?"),
    _row("za", r"[0-9]{2}[01][0-9][0-3][0-9] ?[0-9]{4} ?[01][0-9]{2}", _spaceless(za_idnr.is_valid), "750314021908?"),
)  # fmt: skip
