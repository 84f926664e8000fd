"""What the gate is: the files whose every mutant must be noticed, the tests that notice, and the excused ones."""

from __future__ import annotations

from typing import NamedTuple

PURE = (
    "tests/mutation/test_pure_gate.py",
    "tests/router/door/test_policy.py",
    "tests/router/door/test_used.py",
)
"""Quick and pure: no process, no socket, no file. In this order: the first one notices most."""
SHELL = ("tests/mutation/test_shell_gate.py",)
"""The thin shell around them, with stand-ins for scanner, ledger and provider."""


class Part(NamedTuple):
    """What of a file counts, and who is to notice when it is wrong."""

    only: tuple[str, ...] = ()
    """The functions and classes that count; none given is all of them."""
    spoken: tuple[str, ...] = ()
    """Names that hold words for people."""
    tests: tuple[str, ...] = PURE


FILES: dict[str, Part] = {
    "router/decision/sensitivity.py": Part(spoken=("SPOKEN", "UNREAD", "UNASKED", "BROKEN")),
    "router/decision/clearance.py": Part(("cleared", "promised", "searched", "idle", "refusals_of", "PRIVACY")),
    "router/decision/eligibility.py": Part(("judge", "against")),
    "router/permit.py": Part(),
    "router/gate.py": Part(
        ("search", "_at_once", "_before", "_look", "_search", "_texts", "_seen", "_unread"),
        tests=(*SHELL, "tests/router/test_gate.py"),
    ),
    "router/door/policy.py": Part(),
    "router/door/judging.py": Part(("judge", "_inside", "_seen", "_parse", "_dump"), tests=SHELL),
    "router/door/searching.py": Part(("missed",), tests=SHELL),
    "router/door/closing.py": Part(("told", "look", "close"), tests=SHELL),
}
"""The files, each with its part."""
TESTS = tuple(dict.fromkeys(test for part in FILES.values() for test in part.tests))
EQUIVALENT: dict[str, str] = {
    "router/decision/sensitivity.py data_class_of: if len(sources) > 1: always True": "sorting one changes nothing",
    "router/decision/sensitivity.py data_class_of: len(sources) > 1: Gt → GtE": "sorting one changes nothing",
    "router/decision/sensitivity.py _lowered: '' → another word": "it is asked only where a reason was given",
    "router/decision/sensitivity.py _lowered: ask.declassify or '': without ''": "only where a reason was given",
    "router/decision/sensitivity.py _seen: if findings.found: always True": "of no findings nothing is made",
    "router/gate.py Gate.search: ask.size <= AT_ONCE: LtE → Lt": "one of exactly this size is searched in a thread",
    "router/gate.py Gate.search: LOG.error('a search did not end within %g s', self._within_s): taken out": (
        "what is logged decides nothing"
    ),
    "router/gate.py Gate.search: LOG.error('a search failed: %s', type(failed).__name__): taken out": (
        "what is logged decides nothing"
    ),
    "router/door/policy.py Used.take: if len(self._seen) >= self._limit: always True": (
        "permits that have expired are forgotten sooner, and what is forgotten is refused all the same"
    ),
    "router/door/policy.py found_class: 'secret' → another word": (
        "a class that is none of the four counts as secret in the next line"
    ),
}
"""The mutant's name → why nobody could notice it."""
