"""What endpoints are taken to have read: learned from first tokens, bounded like a cache, corrected by their word."""

from __future__ import annotations

from typing import Any

import pytest

from router.records import Chain, Endpoint, Usage
from router.upstream.prefixes import MOST, UNKNOWN_TOKENS, Prefixes
from tests.fakes.asking import endpoint, local


def engine(name: str = "a", **state: Any) -> Endpoint:
    return endpoint(local(), **{"name": name, "kv_tokens": 10_000, "restarts": 0, **state})


def conversation(number: int, turns: int, each: int = 1000) -> Chain:
    """Of so many messages of so many bytes."""
    sizes = tuple(each * turn for turn in range(1, turns + 1))
    return Chain(tuple(hash((number, turn)) for turn in range(turns)), sizes, sizes[-1])


@pytest.fixture
def prefixes() -> Prefixes:
    made = Prefixes()
    made.heard([engine("a"), engine("b")])
    return made


def test_it_knows_the_longest_beginning_that_was_read_there_and_only_there(prefixes: Prefixes) -> None:
    prefixes.sent("a", conversation(1, 3))
    assert prefixes.cached("a", conversation(1, 5)) == 3000
    assert prefixes.cached("a", conversation(1, 2)) == 2000
    assert prefixes.cached("a", conversation(2, 5)) == prefixes.cached("b", conversation(1, 5)) == 0


def test_it_is_said_in_bytes_of_the_request(prefixes: Prefixes) -> None:
    """A body has more bytes than its texts; half of a prompt is half of its request."""
    prefixes.sent("a", conversation(1, 2))
    assert prefixes.cached("a", conversation(1, 4)._replace(asked=4400)) == 2200


def test_nothing_is_kept_of_what_nobody_looked_at_nor_of_hosted_models(prefixes: Prefixes) -> None:
    prefixes.sent("a", None)
    prefixes.sent("far", conversation(1, 3))
    prefixes.ended("far", conversation(1, 3), 0, Usage(700, 1, 0))
    prefixes.ended("a", None, 0, Usage(700, 1, 0))
    assert prefixes.cached("far", conversation(1, 3)) == 0


def test_it_keeps_as_much_as_the_engine_can_and_forgets_ends_before_beginnings(prefixes: Prefixes) -> None:
    for number in range(5):  # 10,000 tokens are about 40,000 bytes
        prefixes.sent("a", conversation(number, 10))
        prefixes.cached("a", conversation(0, 10))
    assert prefixes.cached("a", conversation(0, 10)) == 0, "what was not used for longest goes first"
    assert [prefixes.cached("a", conversation(number, 10)) for number in (1, 2, 3, 4)] == [10_000] * 4
    prefixes.sent("a", conversation(5, 3))
    assert prefixes.cached("a", conversation(1, 10)) == 7000
    prefixes.sent("a", conversation(1, 2))
    prefixes.sent("a", conversation(6, 9))
    assert prefixes.cached("a", conversation(1, 10)) == 2000, "what was used again stays"


def test_a_beginning_that_many_share_takes_its_room_once(prefixes: Prefixes) -> None:
    for number in range(30):
        shared = conversation(0, 10)
        prefixes.sent("a", Chain((*shared.hashes, number), (*shared.sizes, 11_000), 11_000))
    assert prefixes.cached("a", conversation(0, 10)) == 10_000


def test_memory_is_bounded_whatever_the_engine_says() -> None:
    prefixes = Prefixes()
    prefixes.heard([engine("a", kv_tokens=10**12), engine("b", kv_tokens=None)])
    for number in range(MOST // 50 + 10):
        prefixes.sent("a", conversation(number, 50, each=10))
    assert prefixes.cached("a", conversation(0, 50, each=10)) == 0
    prefixes.sent("b", conversation(1, 10, each=UNKNOWN_TOKENS))
    assert prefixes.cached("b", conversation(1, 10, each=UNKNOWN_TOKENS)) <= 4 * UNKNOWN_TOKENS


@pytest.mark.parametrize("state", [
    {"restarts": 1}, {"state": "starting"}, {"state": "failed"}, {"asleep": True}, {"prefix_hits": 10},
])  # fmt: skip
def test_an_engine_that_was_away_has_read_nothing(prefixes: Prefixes, state: dict[str, Any]) -> None:
    prefixes.heard([engine("a", prefix_hits=500), engine("b")])
    for name in ("a", "b"):
        prefixes.sent(name, conversation(1, 3))
    prefixes.heard([engine("a", prefix_hits=500), engine("b")])
    assert prefixes.cached("a", conversation(1, 3)) == 3000
    prefixes.heard([engine("a", **{"prefix_hits": 600, **state}), engine("b")])
    assert (prefixes.cached("a", conversation(1, 3)), prefixes.cached("b", conversation(1, 3))) == (0, 3000)
    prefixes.sent("a", conversation(1, 2))
    prefixes.heard([engine("b")])
    prefixes.heard([engine("a"), engine("b")])
    assert prefixes.cached("a", conversation(1, 3)) == 0, "nor has one that was not listed"


def answered(prefixes: Prefixes, cached: int | None, times: int = 1) -> None:
    """Requests of 4000 bytes and 1000 tokens, of which so many were there by the engine's own word."""
    for _ in range(times):
        believed = prefixes.cached("a", conversation(1, 4))
        prefixes.ended("a", conversation(1, 4), believed, Usage(1000, 10, cached))


def test_an_engine_whose_answers_deny_it_is_believed_less_and_then_more_again(prefixes: Prefixes) -> None:
    prefixes.sent("a", conversation(1, 4))
    answered(prefixes, 1000, 10)
    assert prefixes.cached("a", conversation(1, 4)) == 4000
    answered(prefixes, 500, 40)
    assert prefixes.cached("a", conversation(1, 4)) == pytest.approx(2000, rel=0.1)
    answered(prefixes, 0, 40)
    assert prefixes.cached("a", conversation(1, 4)) < 100
    answered(prefixes, 1000, 60)
    assert prefixes.cached("a", conversation(1, 4)) > 3600


def test_where_answers_say_nothing_the_engines_count_of_hits_does(prefixes: Prefixes) -> None:
    prefixes.sent("a", conversation(1, 4))
    hits = 0
    for _ in range(60):
        prefixes.heard([engine("a", prefix_hits=hits), engine("b")])
        answered(prefixes, None, 4)
        hits += 400  # a tenth of 4000
    assert prefixes.cached("a", conversation(1, 4)) == pytest.approx(400, rel=0.5)
    for _ in range(60):
        prefixes.heard([engine("a", prefix_hits=hits), engine("b")])
        answered(prefixes, None, 4)
        hits += 4000
    assert prefixes.cached("a", conversation(1, 4)) > 3600


def test_an_engines_count_that_is_unknown_says_nothing(prefixes: Prefixes) -> None:
    prefixes.sent("a", conversation(1, 4))
    for _ in range(20):
        prefixes.heard([engine("a"), engine("b")])
        answered(prefixes, None, 4)
    assert prefixes.cached("a", conversation(1, 4)) == 4000


def test_pictures_teach_nothing(prefixes: Prefixes) -> None:
    prefixes.sent("a", conversation(1, 4))
    for _ in range(40):
        prefixes.ended("a", conversation(1, 4)._replace(asked=4_000_000), 4_000_000, Usage(1000, 10, 10))
    assert prefixes.cached("a", conversation(1, 4)) == 4000
    for number in range(2, 8):
        prefixes.sent("a", conversation(number, 10))
    assert prefixes.cached("a", conversation(1, 4)) == 0, "nor is there more room now"


def test_a_language_of_few_bytes_a_token_fills_the_engine_sooner(prefixes: Prefixes) -> None:
    for _ in range(40):
        prefixes.ended("a", conversation(1, 4), 0, Usage(4000, 10, 0))
    prefixes.sent("a", conversation(1, 30))
    assert prefixes.cached("a", conversation(1, 30)) <= 10_100
