"""Pure: what is looked for here: the shipped kinds, with the site's effects, its own words and what it allows."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from router.scanner import allow
from router.scanner.credentials import CREDENTIALS
from router.scanner.kinds import Kind
from router.scanner.national import NATIONAL
from router.scanner.normal import folded
from router.scanner.personal import PERSONAL
from serving.catalogue import DataClass, Privacy, Words

KINDS: tuple[Kind, ...] = (*PERSONAL, *NATIONAL, *CREDENTIALS)
_CHECK_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BEYOND = re.compile(r"[^\x00-\x7f]")
_NAMELY = re.compile(r"\w", re.ASCII)
OWN = "own:"
"""Kinds of the site's own words begin so."""


class UnknownKind(ValueError):
    """`privacy.effects` names what nothing is called."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What one scanner looks for. Kinds whose effect is `public` are not among them."""

    kinds: tuple[Kind, ...]
    own_domains: tuple[str, ...]
    hash: str
    """Of everything that decides a finding; a compiled database is kept under it."""

    def allowed(self, kind: str, text: str) -> bool:
        """Whether a candidate that passed its check is harmless: an example, a documentation address, an own domain.

        `text` is what the check was given: it ends where the pattern ended.
        """
        return allow.allowed(kind, text, self.own_domains)


def of(privacy: Privacy, kinds: Iterable[Kind] = KINDS) -> Rules:
    """The rules of a site. Raises UnknownKind with one sentence where an effect names no kind."""
    shipped = tuple(kinds)
    names = {kind.name for kind in shipped} | {OWN + own.name for own in privacy.own}
    if unknown := [name for name in privacy.effects if not any(_stands_for(name, kind) for kind in names)]:
        raise UnknownKind(f"privacy.effects: {unknown[0]!r} is no kind; kinds are {', '.join(groups(names))}")
    rows = (*shipped, *(own(words) for words in privacy.own))
    effects = [(kind, effect(kind, privacy.effects)) for kind in rows]
    looked_for = tuple(whole(kind)._replace(effect=found) for kind, found in effects if found > DataClass.public)
    domains = tuple(sorted(domain.lower().lstrip("@.") for domain in privacy.own_domains))
    return Rules(looked_for, domains, _hash(looked_for, domains))


def effects(privacy: Privacy, kinds: Iterable[Kind] = KINDS) -> dict[str, DataClass]:
    """What each kind means now, by its name; `public` is one that is not looked for."""
    return {kind.name: effect(kind, privacy.effects) for kind in (*kinds, *map(own, privacy.own))}


def effect(kind: Kind, effects: Mapping[str, DataClass]) -> DataClass:
    """The class of a finding: the site's for the longest name that stands for the kind, else the shipped one."""
    named = [name for name in effects if _stands_for(name, kind.name)]
    return effects[max(named, key=len)] if named else kind.effect


def groups(names: Iterable[str]) -> list[str]:
    """The names as a person is told them: `national_id` once for every country."""
    return sorted({name.split("_")[0] if name.startswith("credential_") else name for name in names})


def own(words: Words) -> Kind:
    """The row of the site's own words, or of a pattern of its own."""
    patterns = [_word(form) for word in words.words for form in sorted(_cases(word))]
    if words.pattern:
        patterns.append(words.pattern)
    planted = (*words.words[:1], *filter(None, [words.example]))
    return Kind(OWN + words.name, words.data_class, tuple(patterns), planted=planted)


def whole(kind: Kind) -> Kind:
    """The row as it is searched for: its words in the one form that texts are brought into, its planted texts complete.

    A `?` in a planted text becomes what its check asks for.
    """
    planted = tuple(_completed(kind, text) for text in kind.planted) if kind.check else kind.planted
    return kind._replace(
        patterns=tuple(map(_by_bytes, kind.patterns)), context=tuple(map(folded, kind.context)), planted=planted
    )


def _completed(kind: Kind, text: str) -> str:
    if "?" not in text:
        return text
    form = text.replace("{", "{{").replace("}", "}}").replace("?", "{}")
    for found in itertools.product(_CHECK_DIGITS, repeat=text.count("?")):
        if kind.check is None or kind.check(form.format(*found)):
            return form.format(*found)
    raise ValueError(f"no planted text of {kind.name} passes its check")


def _stands_for(name: str, kind: str) -> bool:
    return kind == name or kind.startswith(f"{name}_")


def _cases(word: str) -> set[str]:
    """Hyperscan knows upper and lower case of ASCII by itself; of other letters we write both."""
    return {word} if word.isascii() else {word, word.lower(), word.upper(), word.title()}


def _word(word: str) -> str:
    """A whole word, or several with any gap. Where a script writes no spaces there is no edge to look for."""
    escaped = r"\s+".join(re.sub(r"[^\w]", lambda found: "\\" + found[0], part) for part in folded(word).split())
    before, after = (r"\b" if _NAMELY.match(edge) else "" for edge in (escaped[:1], escaped[-1:]))
    return f"{before}{escaped}{after}"


def _by_bytes(pattern: str) -> str:
    """A pattern over the bytes of normalised text. Beyond ASCII it names bytes: Hyperscan has no word edges else."""
    return _BEYOND.sub(lambda found: "(?:" + "".join(f"\\x{b:02x}" for b in found[0].encode()) + ")", folded(pattern))


def _hash(kinds: Iterable[Kind], domains: Iterable[str]) -> str:
    rows = [
        (kind.name, int(kind.effect), kind.patterns, kind.caseless, kind.context, kind.reach, kind[-2:])
        for kind in kinds
    ]
    return hashlib.sha256(repr((rows, tuple(domains))).encode()).hexdigest()
