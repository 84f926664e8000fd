"""Pure: whether what stands where a credential would stand is one, and no placeholder, name or piece of code."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections import Counter
from urllib.parse import unquote

_NO_SECRET = re.compile(
    r"example|changeme|change_me|placeholder|redacted|your[-_ ]?|x{6}|\*{3}|\.{3}|<|\$\{|\{\{|%\(|%s|\bnone\b|\bnull\b|"
    r"\btrue\b|\bfalse\b|^test|dummy|sample|insert|undefined|getenv|environ|process\.env",
    re.IGNORECASE,
)
_WORDS = frozenset({
    "a", "access", "an", "api", "apikey", "auth", "changeme", "change", "credential", "credentials", "default", "dummy",
    "example", "fake", "false", "foo", "goes", "here", "insert", "key", "me", "mock", "my", "none", "null", "optional",
    "pass", "passphrase", "passwd", "password", "placeholder", "pw", "redacted", "required", "sample", "secret",
    "some", "string", "test", "the", "to", "token", "true", "undefined", "user", "username", "value", "your",
})  # fmt: skip
"""What a placeholder is made of."""
_MASK = re.compile(r"x{4,}|\*{3,}|\.{3,}|\u2022{3,}", re.IGNORECASE)
SEEN = 6
"""Characters that a masked value may still show."""
_COUNTED = re.compile(r"1?2?3?4?5?")
_REFERENCE = re.compile(
    r"\$[A-Z_][A-Z0-9_]*(?:/[\w./-]*)?|\$[A-Za-z_]+(?:(?:\.|->|::?)[A-Za-z_]+)*|(?:\$?\{[^{}\s]*\})+|"
    r"\$\([^()]*\)|\$\{\{.*\}\}|\{\{.*\}\}|<[^<>]*>|"
    r"%\(\w+\)[sd]|%[sdrq]|%[A-Za-z_]+%|&?[*&]?[A-Za-z_]+(?:(?:\.|->|::)[A-Za-z_]+)+|[*&]{1,2}[A-Za-z_]+|@{1,2}[A-Za-z_]+|"
    r"(?:[\w.]*\.)?(?:environ|getenv|env)(?:[.\[(].*)?|\\.|https?://.*",
    re.DOTALL,
)
"""What stands for a value that is elsewhere, as a whole: variables, templates, names in code, addresses."""
_PATH = re.compile(r"(?:~|\.{1,2}|[A-Za-z]:)[/\\].*|(?:[/\\][\w.-]+){2,}[/\\]?")
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_PARTS = re.compile(r"[_.:/\\+-]+")
_NAME = re.compile(r"[0-9]*[A-Za-z]*[0-9]{0,2}")
# These are read from the right, on the text turned round, so that no beginning is tried in vain.
_EULAV = r"(?P<end>[\s\x00\"'`,;(){}\[\]<>]?)(?P<value>[^\s\x00\"'`,;(){}\[\]<>]{6,160})(?P<quote>[\"'`]?)"
_ASSIGNED = re.compile(_EULAV + r"\s{0,8}(?P<sign>>=|=:|=|:)\s{0,8}[\"'`\])]{0,3}(?P<name>[\w. -]{0,60})")
_SAID = re.compile(_EULAV)
_IN_ADDRESS = re.compile(r"://[^\s:@/\"'<>]{0,64}:(?P<value>[^\s@/\"'<>]{1,128})@.$")
_IN_PAIRS = re.compile(
    r"(?:password|pwd|accountkey|sharedaccesskey)\s?=(?P<value>[^;\s\x00\"']{4,128})[;\s\x00\"']?$", re.IGNORECASE
)
_PASSWORD = re.compile(
    r"pass(?:word|wd|phrase|code)|pwd|passwort|kennwort|passe|contrase|senha|wachtwoord|密码|密碼|パスワード|пароль",
    re.IGNORECASE,
)


def entropy(text: str) -> float:
    """Bits a character, by how often each one stands in this text."""
    size = len(text)
    return -sum(n / size * math.log2(n / size) for n in Counter(text).values()) if text else 0.0


def varied(text: str) -> bool:
    """A token that chance made: no row of x or of one digit, and not said to be an example."""
    token = re.split(r"[\s\x00\"'=,;]", text.rstrip(" \t\r\n\x00\"',;="))[-1]
    tail = token[-24:]
    return len(set(tail)) >= min(7, len(tail)) and _NO_SECRET.search(token) is None


def jwt(text: str) -> bool:
    """A token whose first part says how it is signed."""
    start = re.search(r"(?<![\w.-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16}$", text, re.ASCII)
    if start is None:
        return False
    head = start[0].split(".")[0]
    try:
        said = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (ValueError, binascii.Error):
        return False
    return isinstance(said, dict) and not {"alg", "enc", "typ"}.isdisjoint(said)


def assigned(text: str) -> bool:
    """A value that is given to something called a password, secret, token or key."""
    found = _ASSIGNED.match(text[:-257:-1])
    if found is None:
        return False
    value, quoted = found["value"][::-1].rstrip(".!?+"), bool(found["quote"])
    if found["end"] == "(" or (not quoted and found["end"] in ("[", "{", "<")):
        return False  # a call, or the beginning of something longer
    if found["end"] == ">" and value.endswith("-"):
        return False  # what an object has
    if _harmless(value):
        return False
    name = found["name"][::-1]
    if _PASSWORD.search(name):
        # In code a bare value is a name; in settings and prose it is what it says.
        return _mixed(value) and (quoted or found["sign"] == ":" or name.strip().isupper() or not _is_code(value))
    return _random(value)


def assigned_in_words(text: str) -> bool:
    """A value that a sentence calls a password: `my password is …`."""
    found = _SAID.match(text[:-257:-1])
    if found is None:
        return False
    value = found["value"][::-1].strip(".,:;!?+*'")
    return len(value) >= 6 and not _harmless(value) and _mixed(value)


def password_in_address(text: str) -> bool:
    """A password between a user's name and the host of an address."""
    found = _IN_ADDRESS.search(text)
    if found is None:
        return False
    value = unquote(found["value"])
    return len(value) >= 4 and not _harmless(value) and (len(value) >= 8 or _mixed(value))


def password_in_pairs(text: str) -> bool:
    """A password among the `name=value;` pairs of a connection string."""
    found = _IN_PAIRS.search(text)
    return found is not None and not _harmless(found["value"])


def _harmless(value: str) -> bool:
    """Whether a value stands for another one. As a whole: what only begins as such does is somebody's password."""
    return (
        len(set(value.lower())) < 4 or _UUID.fullmatch(value) is not None or _REFERENCE.fullmatch(value) is not None
        or _is_placeholder(value) or (_PATH.fullmatch(value) is not None and _is_code(value))
    )  # fmt: skip


def _is_placeholder(value: str) -> bool:
    """Nothing but words that say what would stand here, or so little that the rest is masked."""
    if len(shown := _MASK.sub("", value)) < len(value):
        return sum(map(str.isalnum, shown)) <= SEEN
    words = re.split(r"[\W_]+", value.lower())
    return not _WORDS.isdisjoint(words) and all(word in _WORDS or _COUNTED.fullmatch(word) for word in words)


def _mixed(value: str) -> bool:
    """Letters, and a digit or a sign that no word or name has."""
    letters = any(map(str.isalpha, value))
    digits = any(map(str.isdigit, value))
    signs = any(letter in "!@#$%^&*+~?|" for letter in value)
    return (letters and (digits or signs)) or (digits and signs)


def _random(value: str) -> bool:
    """What chance made: long, of letters and digits, and no name of something."""
    digits, letters = sum(map(str.isdigit, value)), sum(map(str.isalpha, value))
    return len(value) >= 12 and digits >= 2 and letters >= 2 and entropy(value) >= 3.0 and not _is_code(value)


def _is_code(value: str) -> bool:
    """Words joined by dots, dashes or underscores, as names of things are: `self.token1`, `utf-8`."""
    return all(_NAME.fullmatch(part) for part in _PARTS.split(value))
