"""Which replica affinity wants: who has read the prompt, then the session's own; nobody without room or too busy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from router.decision.decide import decide
from router.decision.policies import KNOWN, LEAST, MOST_AHEAD, MUCH, UNREAD, favoured, placed
from router.decision.question import Favour
from router.records import Ask, Candidate, Chain, Decision, Pace
from tests.fakes.asking import ask, caller, candidate, endpoint, hosted, local, searched, snapshot

NEAR = local()
CHAIN = Chain((1,), (4000,), 4000)
DRAWS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.99)


def replica(name: str, **state: Any) -> Candidate:
    return candidate(NEAR, **{"name": name, "limit": 16, **state})


def wanted(*replicas: Candidate, asked: Ask | None = None, chain: Chain | None = CHAIN, draw: float = 0.0) -> Favour:
    return favoured(replicas, asked or ask(size=4000), caller(), chain, draw)[NEAR.name]


def test_who_has_read_most_of_the_prompt_comes_first_also_where_others_have_less_to_do() -> None:
    some, most = replica("a", cached=2000), replica("b", cached=3000, in_flight=1, outstanding=9000)
    for draw in DRAWS:
        assert wanted(some, most, replica("c"), draw=draw) == Favour("b", "prefix")


def test_a_small_part_of_a_prompt_is_not_worth_it_and_a_large_text_is_whatever_follows_it() -> None:
    def by(cached: int, size: int) -> str:
        found = Counter(
            wanted(replica("a", cached=cached), replica("b"), replica("c"), asked=ask(size=size), draw=draw).by
            for draw in DRAWS
        )
        (only,) = found
        return only

    assert by(int(KNOWN * 4000) + 1, 4000) == "prefix"
    assert by(int(KNOWN * 4000) - 1, 4000) == "session"
    assert by(MUCH, 1_000_000) == "prefix"
    assert by(LEAST - 1, LEAST) == "session"


def test_of_several_that_have_read_as_much_the_one_with_less_to_do() -> None:
    known = [replica(name, cached=3000, outstanding=number) for number, name in enumerate("abc")]
    firsts = Counter(wanted(*known, replica("d"), draw=number / 600).endpoint for number in range(600))
    assert firsts == {"a": 400, "b": 200}
    nearly = [replica("a", cached=3000, outstanding=9), replica("b", cached=2800)]
    assert wanted(*nearly) == Favour("b", "prefix"), "an estimate is not that exact"


@pytest.mark.parametrize("state", [
    {"in_flight": 16}, {"busy": True}, {"failing": True}, {"resting": "it failed"}, {"asleep": True},
    {"state": "starting"}, {"state": "draining"},
])  # fmt: skip
def test_nobody_without_room_or_who_is_not_well_is_wanted(state: dict[str, Any]) -> None:
    out, less, none = replica("a", cached=4000, **state), replica("b", cached=2000), replica("c")
    assert wanted(out, less, none) == Favour("b", "prefix")
    named = [ask(size=4000, session=f"s{number}") for number in range(40)]
    found = {wanted(replica("a", **state), replica("b"), none, asked=one).endpoint for one in named}
    assert found == {"b", "c"}


def test_the_one_that_has_read_it_is_passed_over_while_it_is_far_busier_than_another() -> None:
    def first(in_flight: int, cached: int = 40_000, limit: int = 16, least: int = 0) -> str:
        much = replica("a", cached=cached, in_flight=in_flight, limit=limit)
        return wanted(much, replica("b", in_flight=least, limit=limit), asked=ask(size=cached)).endpoint

    far = int(16 * MOST_AHEAD)
    assert (first(far), first(far + 1)) == ("a", "b"), "a quarter of its places, whatever it has read"
    assert first(64, limit=256, cached=200_000) == "a"
    assert first(65, limit=256, cached=200_000) == "b", "by its own places"
    assert (first(1, cached=3000), first(2, cached=3000)) == ("a", "b"), "a short beginning is not worth as much"
    busy = [first(60, limit=64, least=least) for least in (42, 38)]
    assert busy == ["a", "b"], "where both are busy, half as much again"


def test_the_next_longest_is_asked_before_chance() -> None:
    most, next_one = replica("a", cached=3900, in_flight=9), replica("b", cached=3000)
    assert wanted(most, next_one, replica("c")) == Favour("b", "prefix")


def test_a_wait_for_other_prompts_must_not_take_longer_than_reading_this_one_again() -> None:
    def first(unread: int, cached: int) -> str:
        return wanted(replica("a", cached=cached, unstarted=unread), replica("b"), asked=ask(size=cached)).endpoint

    assert (first(UNREAD, 3000), first(UNREAD + 1, 3000)) == ("a", "b")
    assert (first(10_000, 40_000), first(10_001, 40_000)) == ("a", "b"), "40,000 bytes are 10,000 tokens"


def test_what_others_send_there_counts_and_what_comes_back_has_fewer_places() -> None:
    crowded = replica("a", cached=4000, running=8, waiting=2)
    assert wanted(crowded, replica("b", running=0, waiting=0)) != Favour("a", "prefix")
    back = replica("a", cached=40_000, in_flight=3, share=0.25)
    assert wanted(back, replica("b"), asked=ask(size=40_000)) != Favour("a", "prefix")


def test_conversations_leave_a_replica_that_has_become_slow() -> None:
    """UP-013: by what its own answers have shown; and what is not known yet is not slow."""

    def first(speed: float | None, other: float | None) -> str:
        paced = [replica(n, cached=c, pace=Pace(decode=s)) for n, c, s in (("a", 4000, speed), ("b", 0, other))]
        return wanted(*paced).endpoint

    assert (first(26, 50), first(24, 50), first(None, 50), first(24, None)) == ("a", "b", "a", "a")


def test_a_named_session_has_its_replica_and_an_opening_the_less_busy_of_two() -> None:
    four = [replica(name) for name in "abcd"]
    named = ask(size=4000, session="s1")
    (home,) = {wanted(*four, asked=named, draw=draw).endpoint for draw in DRAWS}
    busy = [replica(name, outstanding=9000 if name == home else 0) for name in "abcd"]
    assert wanted(*busy, asked=named) == Favour(home, "session")
    assert wanted(*four, asked=named, chain=None) == Favour(home, "session"), "also where nobody looked at its text"
    unnamed = ask(size=4000)
    (home,) = {wanted(*four, asked=unnamed, draw=draw).endpoint for draw in DRAWS}
    busy = [replica(name, outstanding=9000 if name == home else 0) for name in "abcd"]
    (other,) = {wanted(*busy, asked=unnamed, draw=draw).endpoint for draw in DRAWS}
    assert other not in ("", home)
    assert wanted(*four, asked=unnamed, chain=None) == Favour("", "work")


def test_a_session_moves_while_its_replica_is_far_busier() -> None:
    named = ask(size=300, session="s1")
    home = wanted(replica("a"), replica("b"), asked=named).endpoint
    pair = [replica(name, in_flight=5 if name == home else 0) for name in "ab"]
    assert wanted(*pair, asked=named) == Favour("", "guard")


def test_only_replicas_of_one_local_model_are_compared() -> None:
    far = hosted("far")
    assert favoured([candidate(far), candidate(NEAR, cached=4000)], ask(size=4000), caller(), CHAIN, 0.0) == {}


# ---- in a decision


def decided(asked: Ask, *states: dict[str, Any]) -> Decision:
    served = [endpoint(NEAR, **{"name": n, "limit": 16, **state}) for n, state in zip("abcd", states, strict=False)]
    seen = snapshot(NEAR, endpoints=served)._replace(chain=CHAIN, draw=0.5)
    return decide(asked, caller("private"), searched(asked.body), seen)


def test_a_decision_says_what_placed_it_and_why() -> None:
    found = decided(ask("near", size=4000), {}, {"cached": 3000}, {})
    assert (found.order[0].endpoint.name, found.placed) == ("b", "prefix")
    assert "; b has read 75 % of this prompt before; private data may go to near" in found.reason
    found = decided(ask("near", size=4000, session="s1"), {}, {}, {})
    assert found.placed == "session"
    assert f"; {found.order[0].endpoint.name} is where its session goes;" in found.reason
    found = decided(ask("near", size=4000), {"cached": 4000, "in_flight": 9}, {"in_flight": 9}, {})
    assert found.order[0].endpoint.name != "a"
    assert decided(ask("near", size=4000), {"cached": 4000}).placed == "", "where there is no choice"


def test_what_is_full_is_last_whatever_it_has_read() -> None:
    found = decided(ask("near", size=4000), {"cached": 4000, "in_flight": 16}, {}, {})
    assert found.order[-1].endpoint.name == "a"
    full = decided(ask("near", size=4000), *[{"in_flight": 16, "cached": 4000 * n} for n in range(2)])
    assert full.placed == "work" and placed(full.order, {}) == ""
