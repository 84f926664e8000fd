"""How each endpoint has fared lately, and which are better left alone for now. Pure: the time is handed in.

Nothing is ruled out here: an endpoint that rests comes last, so the last one that may answer is still asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

IN_A_ROW = 3
"""Failures after which an endpoint rests; a refused connection is enough by itself."""
REST_S = 30.0
"""The first rest; each further one is longer by as much."""
MOST_REST_S = 300.0
FORGET_S = 300.0
"""An endpoint that was well for so long begins with a short rest again."""
PENALTY_S = 5.0
"""For so long after a failure an endpoint comes behind its replicas: to fail fast must not look like being idle."""
RAMP_S = 10.0
"""After a rest, the time in which its share grows: of its places, and of what its replicas get."""
FIRST_SHARE = 0.1
PAUSE = "it asked for a pause"


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one endpoint. Times are those of one clock, whichever it is."""

    failures: int = 0
    """In a row."""
    rests: int = 0
    """How often it had to rest before it was well for long."""
    until: float = 0.0
    """When its rest ends."""
    why: str = ""
    """Why it rests; stays until it has answered again."""
    failed: bool = False
    """Whether it rests since it failed, and not since it asked to be left alone."""
    trying: bool = False
    """Whether the one request is under way that shows whether it is well again."""
    penalty: float = 0.0
    """Until when it comes behind its replicas."""
    asked: float = 0.0
    """Until when it asked to be left alone."""
    back: float = float("-inf")
    """When it last answered after a rest."""


WELL = Standing()


def after_failure(known: Standing, why: str, now: float, *, at_once: bool) -> Standing:
    """One more failure. `at_once`: it is enough by itself, as a refused connection is."""
    failures, penalty = known.failures + 1, now + PENALTY_S
    probe = known.failed and now >= known.until
    if not (at_once or probe or failures >= IN_A_ROW) or (known.failed and now < known.until):
        return replace(known, failures=failures, penalty=penalty, trying=False)
    rests = (0 if not known.failed and now - known.back > FORGET_S else known.rests) + 1
    rest = min(REST_S * rests, MOST_REST_S)
    until = max(now + rest, known.until)
    return replace(
        known, failures=failures, rests=rests, until=until, why=why, failed=True, trying=False, penalty=penalty
    )


def after_pause(known: Standing, seconds: float, now: float) -> Standing:
    """It asked to be left alone for so long. No failure, but it is not idle either."""
    penalty = max(known.penalty, now + PENALTY_S)
    asked = max(known.asked, now + seconds)
    why = known.why if known.failed or seconds <= 0 else known.why or PAUSE
    return replace(known, until=max(known.until, asked), asked=asked, why=why, penalty=penalty, trying=False)


def after_answer(known: Standing, now: float) -> Standing:
    """It answers: a rest is over, and after one that failures brought its share grows slowly."""
    if not known.why:
        return known
    back = now if known.failed else known.back
    if now < known.asked:  # it may answer what was sent before, and wants no more all the same
        return replace(known, until=known.asked, why=PAUSE, failed=False, trying=False, back=back)
    return replace(known, until=0.0, why="", failed=False, trying=False, penalty=0.0, back=back)


def resting(known: Standing, now: float) -> str:
    """Why it is left alone now, or ""."""
    if not known.why:
        return ""
    if now < known.until:
        return f"{known.why}; {known.until - now:.0f} s more"
    return "one request is finding out whether it is well again" if known.failed and known.trying else ""


def share(known: Standing, now: float) -> float:
    """Its share: grows from FIRST_SHARE to 1 in RAMP_S after a rest."""
    passed = (now - known.back) / RAMP_S
    return min(1.0, FIRST_SHARE + (1 - FIRST_SHARE) * max(passed, 0.0))


class Health:
    """The standing of every endpoint by name. Only what is not well takes any room."""

    def __init__(self) -> None:
        self._known: dict[str, Standing] = {}

    def failed(self, endpoint: str, why: str, now: float) -> None:
        """A try failed as `why` says: an outcome's name. What is no fault of the endpoint is not told here."""
        known = self._known.get(endpoint, WELL)
        text = "it refuses connections" if why in AT_ONCE else "it failed again and again"
        self._known[endpoint] = after_failure(known, text, now, at_once=why in AT_ONCE)

    def asked_to_wait(self, endpoint: str, seconds: float, now: float) -> None:
        self._known[endpoint] = after_pause(self._known.get(endpoint, WELL), seconds, now)

    def tried(self, endpoint: str, now: float) -> bool:
        """A request is sent there. True for the first after a rest, the probe: others keep away until it is known."""
        known = self._known.get(endpoint)
        if known is None or not known.failed or now < known.until or known.trying:
            return False
        self._known[endpoint] = replace(known, trying=True)
        return True

    def left(self, endpoint: str) -> None:
        """A probe ended that says nothing of the endpoint: its caller left, or the request was wrong."""
        known = self._known.get(endpoint)
        if known is not None and known.trying:
            self._known[endpoint] = replace(known, trying=False)

    def answered(self, endpoint: str, now: float) -> None:
        """It has begun to answer."""
        known = self._known.get(endpoint)
        if known is not None and known.why:
            self._known[endpoint] = after_answer(known, now)

    def ended(self, endpoint: str) -> None:
        """An answer came to its end: failures before it are no longer in a row."""
        known = self._known.get(endpoint)
        if known is not None and known.failures:
            self._known[endpoint] = replace(known, failures=0)

    def restarted(self, endpoint: str, now: float) -> None:
        """It is another process by now: nothing of before counts but that it has to be filled slowly."""
        known = self._known.get(endpoint)
        if known is not None:
            self._known[endpoint] = Standing(back=now if known.failed else known.back)

    def only(self, endpoints: Iterable[str]) -> None:
        """Forget all others."""
        left = set(self._known).difference(endpoints)
        for name in left:
            del self._known[name]

    def well(self, endpoint: str) -> bool:
        """Whether nothing is known against it: it does not rest, is not failing, and all its places may be used."""
        return endpoint not in self._known

    def resting(self, endpoint: str, now: float) -> str:
        """Why it is left alone now, or ""."""
        known = self._known.get(endpoint)
        return "" if known is None else resting(known, now)

    def rest_s(self, endpoint: str, now: float) -> float:
        """Seconds until its rest is over; 0 where it does not rest."""
        known = self._known.get(endpoint)
        return 0.0 if known is None or not known.why else max(0.0, known.until - now)

    def pause(self, endpoint: str, now: float) -> float:
        """Seconds that it still wants to be left alone by its own word; 0 where it said nothing."""
        known = self._known.get(endpoint)
        return 0.0 if known is None else max(0.0, known.asked - now)

    def failing(self, endpoint: str, now: float) -> bool:
        """Whether it failed in the last moments and comes behind its replicas."""
        known = self._known.get(endpoint)
        return known is not None and now < known.penalty

    def on_trial(self, endpoint: str, now: float) -> bool:
        """Whether its rest after failures is over and it has not answered since: one request finds out, and not all."""
        known = self._known.get(endpoint)
        return known is not None and known.failed and now >= known.until

    def share(self, endpoint: str, now: float) -> float:
        """Its share of its places, and of what its replicas get: less than 1 for a while after a rest."""
        known = self._known.get(endpoint)
        return 1.0 if known is None else share(known, now)

    def limit(self, endpoint: str, limit: int, now: float) -> int:
        """How many of its `limit` places may be used; 0 stays 0, which is unknown: there the choice alone is slow."""
        return limit if limit <= 0 else max(1, int(limit * self.share(endpoint, now)))


AT_ONCE = frozenset({"refused", "outside"})
"""Outcomes that are enough to let an endpoint rest."""
