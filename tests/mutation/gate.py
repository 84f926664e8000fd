"""What the gate is: the files whose every mutant must be noticed, the tests that notice, and the excused ones."""

from __future__ import annotations

FILES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "router/decision/sensitivity.py": ((), ("SPOKEN", "UNREAD", "UNASKED")),
    "router/decision/clearance.py": (("cleared", "promised", "searched", "refusals_of", "PRIVACY"), ()),
    "router/decision/eligibility.py": (("judge",), ()),
    "router/permit.py": ((), ()),
    "router/door/policy.py": ((), ()),
}
"""The file → the functions in it that count (none given is all of them), and the names that hold words for people."""
TESTS = (
    "tests/mutation/test_pure_gate.py",
    "tests/router/door/test_policy.py",
    "tests/router/door/test_used.py",
)
"""Quick and pure: no process, no socket, no file. In this order: the first one notices most."""
EQUIVALENT: dict[str, str] = {
    "router/decision/sensitivity.py data_class_of: if len(sources) > 1: always True": "sorting one changes nothing",
    "router/decision/sensitivity.py data_class_of: len(sources) > 1: Gt → GtE": "sorting one changes nothing",
    "router/decision/sensitivity.py _lowered: '' → another word": "it is asked only where a reason was given",
    "router/decision/sensitivity.py _lowered: ask.declassify or '': without ''": "only where a reason was given",
    "router/decision/sensitivity.py _seen: if findings.found: always True": "of no findings nothing is made",
    "router/door/policy.py Used.take: if len(self._seen) >= self._limit: always True": (
        "permits that have expired are forgotten sooner, and what is forgotten is refused all the same"
    ),
    "router/door/policy.py found_class: 'secret' → another word": (
        "a class that is none of the four counts as secret in the next line"
    ),
}
"""The mutant's name → why nobody could notice it."""
