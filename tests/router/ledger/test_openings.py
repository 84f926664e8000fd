"""Which openings are an application's and not one conversation's: learned from what goes on differently."""

from __future__ import annotations

from router.ledger.openings import MANY, Openings


def names(*parts: str) -> list[bytes]:
    """As of a conversation of so many messages: each name stands for all up to it."""
    return ["/".join(parts[: number + 1]).encode() for number in range(len(parts))]


def test_what_many_conversations_begin_with_is_nobody_s_own_and_neither_is_what_that_begins_with() -> None:
    openings, mine = Openings(), names("example", "answer", "my question", "its answer")
    for number in range(MANY):
        assert openings.own(mine) == mine
        openings.saw(names("example", "answer", f"question {number}"))
    assert openings.own(mine) == mine[2:]
    assert openings.own(names("example", "another")) == names("example", "another")[1:]


def test_the_same_conversation_again_and_again_is_one() -> None:
    openings, mine = Openings(), names("example", "answer", "question")
    for _ in range(3 * MANY):
        openings.saw(mine)
    assert openings.own(mine) == mine


def test_a_window_that_moves_over_a_long_conversation_shares_nothing() -> None:
    openings = Openings()
    for turn in range(3 * MANY):
        openings.saw(names("first", *(str(turn + place) for place in range(4))))
    assert openings.own(names("first")) == names("first")


def test_it_keeps_those_that_were_seen_last() -> None:
    openings = Openings(most=10)
    for number in range(MANY):
        openings.saw(names("example", f"question {number}"))
    for number in range(30):
        openings.saw(names(f"other {number}", "question"))
        if number < 15:
            openings.saw(names("example", "question 1"))
    assert openings.own(names("example")) == []
    assert len(openings._next) == 10
