"""Pure: what belongs to a person: addresses of every kind, accounts, papers, dates, health."""

from __future__ import annotations

from stdnum.gb import nhs

from router.scanner import checks, words
from router.scanner.checks import number
from router.scanner.kinds import Kind
from serving.catalogue import DataClass

_INTERNAL, _PRIVATE = DataClass.internal, DataClass.private
_LABEL = r"[^\s@.,:;<>()\[\]{}\"'/\\|=&?!]+"
_MBI_LETTER, _MBI_ANY = "[AC-HJKMNP-RT-Y]", "[AC-HJKMNP-RT-Y0-9]"
_MBI = f"[1-9]{_MBI_LETTER}{_MBI_ANY}[0-9]-?{_MBI_LETTER}{_MBI_ANY}[0-9]-?{_MBI_LETTER}{{2}}[0-9]{{2}}"
_PASSPORT = "[A-Z0-9]{6,9}"
_PASSPORTS = "|".join("[A-Z]" * n + f"[0-9][A-Z0-9]{{{max(0, 5 - n)},{8 - n}}}" for n in range(8)) + "|[A-Z]{8}[0-9]"
"""The same with the first digit somewhere in it: without one any word would be a candidate."""
_RECORD = "[A-Z]{0,3}[-#]?[0-9]{5,10}|[0-9]{2,4}(?:-[0-9]{2,4}){1,3}"
_MEMBER = "[A-Z]{0,4}[-#]?[0-9]{6,12}[A-Z]?[0-9]{0,2}|[A-Z]{1,3}[0-9]{3}[- ][0-9]{3}[- ][0-9]{3,4}"
_IBAN = (
    "(?:A[DELOTZ]|B[AEGHIRY]|C[HRYZ]|D[EJKO]|E[EGS]|F[IKORM]|G[BEILRT]|H[RUN]|I[ELQST]|J[O]|K[WZ]|L[BCITUVY]|M[CDEKNRTU]|"
    "N[ILO]|OM|P[KLST]|QA|R[OSU]|S[ACDEIKMOTV]|T[LNR]|UA|V[AG]|XK|YE)"
)
_NHS = "[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{4}"
_WAYS = (
    r"(?:street|str|st|avenue|ave|boulevard|blvd|road|rd|lane|ln|drive|dr|court|ct|square|sq|terrace|way|parkway|pkwy|highway|"
    r"hwy|circle|cir|crescent|place|pl|close|trail|alley|row|mews|loop|plaza|freeway|turnpike|walk|quay)"
)
_VOIES = r"(?:rue|avenue|av|boulevard|bd|place|chemin|impasse|all(?:é|e)e|quai|cours|route|square|passage|faubourg)"
_VIAS = (
    r"(?:calle|c/|avenida|avda|plaza|paseo|camino|camiño|carretera|ronda|rua|r|travessa|praça|largo|estrada|rúa|via|viale|"
    r"piazza|corso|vicolo|largo|strada|rue|avenue|ul|ulica|al|aleja|os|ulice)"
)
_NAME = r"[^\s\d,;:.!?()]{2,}"

PERSONAL: tuple[Kind, ...] = (
    # What nobody here can read, and words of two scripts: the scanner finds them itself, so there is no pattern.
    Kind("blob", _PRIVATE, ()),
    Kind("mixed_script", _PRIVATE, (), planted=("p\u0430yp\u0430l",)),
    Kind(
        "email", _INTERNAL,
        (rf"[^\s@<>(),:;\"'=\[\]\x00-\x20]@(?:{_LABEL}\.)+(?:[a-z]{{2,}}|xn--[a-z0-9-]+)\b",
         r"[\w+-]\s?[\[({]\s?at\s?[\])}]\s?[\w-]+(?:\s?(?:\.|[\[({]\s?dot\s?[\])}])\s?[\w-]{2,})+\b",
         r"\w\sat\s[\w-]+\sdot\s(?:com|net|org|edu|gov|io|dev|de|fr|es|it|nl|ch|at|be|eu|uk|co)\b"),
        planted=("write to jane.roe@mail.headgate.dev today",), reach=128,
    ),
    Kind(
        "phone", _INTERNAL, (r"\+[1-9][0-9 ()./-]{6,}[0-9]\b",), checks.phone,
        planted=("+44 20 7946 0018", "+49 (30) 901820"), reach=40, in_pieces=True,
    ),
    Kind(
        "phone", _INTERNAL,
        (r"\b[2-9][0-9]{2}\)?[ .-]{1,2}[0-9]{3}[ .-][0-9]{4}(?:\s?(?:x|ext\.?)\s?[0-9]{1,6})?\b",
         r"\b0[1-9][0-9]{0,3}[ /.-][0-9]{2}[0-9 .-]*[0-9]{2}\b"),
        checks.some_digits(8, 20), planted=("(212) 555-7788", "089 72 63 41"), reach=32,
        in_pieces=True,
    ),
    Kind(
        "phone", _INTERNAL, (r"\b[0-9]{2,5}[ ()./-][0-9 ()./-]*[0-9]\b", r"\b[0-9]{7,13}\b"),
        checks.some_digits(6, 15), context=words.CALL, planted=("my phone: 467 3395",), reach=32,
        in_pieces=True,
    ),
    Kind(
        "address", _INTERNAL,
        (rf"\b[0-9]{{1,5}}[a-z]?,?\s(?:(?:n|s|e|w|north|south|east|west)\.?\s)?(?:{_NAME}\s){{1,4}}{_WAYS}\b",
         rf"\b[0-9]{{1,4}}(?:\s?(?:bis|ter))?,?\s{_VOIES}\s(?:{_NAME}\s?){{1,4}}",
         rf"\b{_VIAS}\.?\s(?:{_NAME}\s){{1,4}},?\s?(?:n(?:º|°|\.)?\s?)?[0-9]{{1,5}}\b",
         rf"\b{_NAME}(?:straße|strasse|str\.|gasse|platz|allee|weg|damm|ufer|ring|straat|laan|plein|gracht|kade|dreef|"
         r"gatan|vägen|gränd|gata|vej|gade|veien|vegen|katu|tie|kuja|polku|utca|vaart)\s[0-9]{1,5}\s?[a-z]?\b",
         rf"\b{_NAME}\s(?:út|utca|tér|körút|köz|u\.|strasse|straße|street|ulica|út\.|sokak|caddesi)\s[0-9]{{1,5}}\b",
         r"\b(?:apt|apartment|suite|unit|flat)\.?\s?#?\s?[0-9]{1,5}[a-z]?\b",
         r"\b(?:p\.?\s?o\.?\s?box|postfach|boîte postale|apartado|psc|cmr)\s[0-9]{1,6}\b",
         r"\b[a-z]{1,2}[0-9][a-z0-9]?\s[0-9][abd-hjlnp-uw-z]{2}\b",
         r"\b[abceghj-nprstvxy][0-9][abceghj-nprstv-z]\s[0-9][abceghj-nprstv-z][0-9]\b",
         r"(?:省|市|区|县|町|村)[^\s,.]{1,40}(?:路|街|道|巷|丁目|番地?)[^\s,.]{0,12}[0-9]{1,5}",
         r"(?:ул\.|улица|проспект|пр\.|пер\.)\s[^\s,]{2,30},?\s(?:д\.\s?)?[0-9]{1,4}"),
        checks.address, planted=("221 Baker Street", "Hauptstraße 12", "12 rue de la Paix", "Calle Mayor 5"), reach=120,
    ),
    Kind(
        "address", _INTERNAL,
        (r"\b(?:A[LKZR]|C[AOT]|DE|FL|GA|HI|I[DLNA]|K[SY]|LA|M[EDAINSOT]|N[EVHJMYCD]|O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[TA]|"
         r"W[AVIY]|A[AEP]|GU|PR)\s[0-9]{5}(?:-[0-9]{4})?\b",),
        caseless=False, planted=("Springfield, IL 62704",), reach=16,
    ),
    Kind(
        "card", _PRIVATE, (r"(?:^|[^0-9A-Za-z_.])[0-9]{14,19}\b",
                           r"\b[0-9]{4}(?:[ .+-][0-9]{4}){2,3}[ .+-][0-9]{1,4}\b",
                           r"\b[0-9]{4}[ .+-][0-9]{6}[ .+-][0-9]{4,5}\b"),
        checks.card, planted=("4539 1488 0343 646?", "37828224631000?"), reach=32, in_pieces=True,
    ),
    Kind(
        "card", _PRIVATE, (r"\b[0-9]{12,13}\b",), checks.card, planted=("card: 50180000000?",),
        context=("card", "credit", "debit", "visa", "maestro", "mastercard", "payment", "carte", "karte", "tarjeta"),
        reach=24, in_pieces=True,
    ),
    Kind(
        "iban", _PRIVATE, (rf"\b{_IBAN}[0-9]{{2}}(?:[ +-]?[a-z0-9]{{4}}){{2,7}}(?:[ +-]?[a-z0-9]{{1,3}})?\b",),
        checks.iban,
        planted=("GB?? WEST 1234 5698 7654 32",), reach=48, in_pieces=True,
    ),
    Kind(
        "bic", _INTERNAL, (r"\b[A-Z]{6}[A-Z0-9]{2}(?:[A-Z0-9]{3})?\b",), checks.bic, caseless=False,
        context=("bic", "swift", "bank", "iban", "swift-bic"), planted=("BIC: DEUTDEFF",), reach=16,
    ),
    Kind(
        "passport", _PRIVATE, (rf"\b(?:{_PASSPORTS})\b",), number(_PASSPORT, checks.has_digits), context=words.PASSPORT,
        planted=("passport no. 9635????",), reach=16,
    ),
    Kind(
        "passport", _PRIVATE, (r"\bP[A-Z<][A-Z]{3}[A-Z]{2,30}<[A-Z<]{6}",), caseless=False,
        planted=("P<UTOROE<<JANE" + "<" * 12,), reach=48,
    ),
    Kind(
        "birth", _PRIVATE,
        (r"\b(?:[0-9]{1,2}[./-]){2}(?:[0-9]{2}|[12][0-9]{3})\b",
         r"\b(?:18|19|20)[0-9]{2}[./ -][0-9]{1,2}[./ -][0-9]{1,2}\b", r"\b[0-9]{1,2} [0-9]{1,2} (?:19|20)[0-9]{2}\b",
         rf"\b[0-9]{{1,2}}(?:st|nd|rd|th|\.|er)?\s?(?:of\s|de\s)?{words.MONTHS}\.?,?\s?(?:de\s)?(?:18|19|20)[0-9]{{2}}\b",
         rf"\b{words.MONTHS}\.?\s[0-9]{{1,2}}(?:st|nd|rd|th)?,?\s(?:18|19|20)[0-9]{{2}}\b",
         r"(?:19|20)[0-9]{2}年[0-9]{1,2}月[0-9]{1,2}日"),
        checks.birthday, context=words.BORN, planted=("born on ? July 19?6",), reach=24,
    ),
    Kind(
        "ip", _INTERNAL,
        (r"\b(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\b",
         r"\b(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}\b",
         r"\b(?:[0-9a-f]{1,4}:){1,6}:(?:[0-9a-f]{1,4}:){0,5}[0-9a-f]{1,4}\b"),
        checks.ip, planted=("9.9.9.9", "2620:fe::fe:9"), reach=48,
    ),
    Kind(
        "mac", _INTERNAL, (r"\b(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}\b", r"\b(?:[0-9a-f]{4}\.){2}[0-9a-f]{4}\b"),
        number("(?:[0-9A-F]{2}[:-]){5}[0-9A-F]{2}|(?:[0-9A-F]{4}[.]){2}[0-9A-F]{4}", checks.hardware),
        planted=("3c:22:fb:81:0e:57",), reach=20,
    ),
    Kind(
        "medical_record", _PRIVATE, (rf"\b(?:{_RECORD})\b",), number(_RECORD, checks.has_digits), context=words.RECORD,
        planted=("MRN: 0048????",), reach=20,
    ),
    Kind(
        "medical_insurance", _PRIVATE, (rf"\b(?:{_MEMBER})\b",), number(_MEMBER, checks.has_digits),
        context=words.INSURANCE, planted=("member ID: XYZ12345????",), reach=24,
    ),
    Kind(
        "medical_insurance", _PRIVATE, (rf"\b{_MBI}\b",), number(_MBI, checks.has_digits), caseless=False,
        planted=("1EG4-TE5-MK73",), reach=16,
    ),
    Kind(
        "medical_insurance", _PRIVATE, (rf"\b{_NHS}\b",), number(_NHS, nhs.is_valid),
        context=("nhs", "nhs number", "national health"), planted=("NHS number: 943 476 591?",),
        reach=16, in_pieces=True,
    ),
)  # fmt: skip
