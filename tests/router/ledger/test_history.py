"""What was private once stays private: what is known again, what is not, by whom, and for how long."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from router.api.asking import make_ask
from router.ledger.history import MOST_LOOKED_UP, History
from router.ledger.openings import MANY
from router.ledger.released import look, release, release_loss
from router.records import Ask, Caller, Found, Past
from serving.catalogue import DataClass
from tests.fakes.asking import ask, caller
from tests.fakes.remembering import (
    ANSWER,
    FIRST,
    INTERNAL,
    OTHER,
    PRIVATE,
    PUBLIC,
    Clocks,
    Said,
    Searched,
    Text,
    finding,
    opened,
    talk,
)

ME = caller()
SYSTEM = "You are a careful assistant of the accounting department; answer shortly and say when you are not sure."


@pytest.fixture(params=["with others", "alone"])
def history(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[History]:
    """As one of several processes has it, and as the only one, which never says of something that there is nothing."""
    alone = request.param == "alone"
    with contextlib.closing(opened(tmp_path, alone=alone)) as made:
        past = made.past

        def checked(caller: Caller, ask: Ask, texts: Sequence[Text]) -> tuple[Past, ...]:
            none, found = made.has_none(caller, ask, texts), past(caller, ask, texts)
            assert not none or (alone and not found)
            return found

        monkeypatch.setattr(made, "past", checked)
        yield made


def test_who_is_alone_knows_at_once_that_nothing_was_private(tmp_path: Path) -> None:
    with contextlib.closing(opened(tmp_path, alone=True)) as history:
        assert history.has_none(ME, ask(), talk(FIRST)) and history.has_none(ME, ask(session="s"), talk(OTHER))
        private_talk(history, talk(FIRST), FIRST)
        assert not history.has_none(ME, ask(), talk(OTHER, FIRST)) and not history.has_none(ME, ask(), talk(FIRST))
        assert history.has_none(ME, ask(), talk(OTHER))
        texts = talk(*(f"{number} is another text, and each of them is a long one, so that all would have to be looked "
                       "up in the end" for number in range(MOST_LOOKED_UP + 1)))  # fmt: skip
        assert not history.has_none(ME, ask(), texts)
    with contextlib.closing(opened(tmp_path, alone=True)) as history:  # the next start
        assert not history.has_none(ME, ask(), talk(OTHER, FIRST))


def private_talk(history: History, texts: list[Text], *holding: str, said: str = ANSWER) -> None:
    history.note(ME, ask(), texts, finding(texts, *holding), said=Said((said,)))


def test_nothing_is_known_of_what_was_never_private(history: History) -> None:
    texts = talk(FIRST, system=SYSTEM)
    assert not history.past(ME, ask(), texts)
    history.note(ME, ask(), texts, Searched(by_text=((), ())), said=Said((ANSWER,)))
    assert not history.past(ME, ask(), talk(FIRST, ANSWER, OTHER, system=SYSTEM))


def test_pg_028_a_private_message_stays_private_in_a_new_session(history: History) -> None:
    private_talk(history, talk(FIRST, system=SYSTEM), FIRST)
    (past,) = history.past(ME, ask(session="another"), talk(OTHER, ANSWER[:30], FIRST))
    assert past.data_class is PRIVATE
    assert past.why == "an earlier request had a text of it, in which was found: card"


@pytest.mark.parametrize(
    "said", [ANSWER, ANSWER.replace(" ", "\n\n "), f"  {ANSWER}\t", ANSWER.replace("e", "e\u200b")]
)
def test_an_answer_to_a_private_request_stays_private_however_it_is_spaced(history: History, said: str) -> None:
    private_talk(history, talk(FIRST), FIRST)
    (past,) = history.past(ME, ask(session="another"), talk(said))
    assert past.data_class is PRIVATE
    assert "an answer to an earlier request that was private" in past.why


def test_a_text_in_another_unicode_form_is_the_same_text(history: History) -> None:
    said = "Die Kündigung der Frau Müller-Lüdenscheidt wurde am frühen Morgen persönlich übergeben, für später."
    private_talk(history, talk(FIRST), FIRST, said=said)
    for form in ("NFC", "NFD", "NFKD"):
        assert history.past(ME, ask(session="x"), talk(unicodedata.normalize(form, said)))


def test_system_prompt_and_greeting_are_shared_with_conversations_that_may_leave(history: History) -> None:
    tools = "Looks up an invoice by its number and says who has paid it and when; give the number alone, please."
    texts = talk("hello", "Hello! How can I help?", FIRST, system=SYSTEM, tools=tools)
    history.note(ME, ask(), texts, finding(texts, FIRST, SYSTEM, tools), said=Said((ANSWER,)))
    assert not history.past(ME, ask(), talk("hello", system=SYSTEM, tools=tools))
    other = talk("hello", "Hello! How can I help?", OTHER, system=SYSTEM, tools=tools)
    assert not history.past(ME, ask(), other)
    assert not history.past(ME, ask(), talk(FIRST[:60], ANSWER[:60]))  # nor are short texts known again


def test_only_the_message_in_which_something_was_found_is_remembered(history: History) -> None:
    texts = talk(OTHER, "Yes.", FIRST)
    history.note(ME, ask(session="one"), texts, finding(texts, FIRST))
    assert not history.past(ME, ask(session="two"), talk(OTHER))
    assert history.past(ME, ask(session="two"), talk(FIRST))


def test_a_message_of_several_parts_is_known_as_a_whole_and_by_the_part_that_held_something(history: History) -> None:
    reminder = "The system reminds you that tools are available, and that answers are to be kept short and plain."
    texts = talk([reminder, FIRST])
    history.note(ME, ask(session="one"), texts, finding(texts, FIRST))
    assert not history.past(ME, ask(session="two"), talk([reminder, OTHER]))
    assert history.past(ME, ask(session="two"), talk([OTHER, FIRST]))
    assert history.past(ME, ask(session="two"), talk(reminder + FIRST))


def test_the_class_is_that_of_what_was_found(history: History) -> None:
    texts = talk(FIRST)
    history.note(ME, ask(), texts, finding(texts, FIRST, effect=INTERNAL, kind="email"), said=Said((ANSWER,)))
    for again in (talk(FIRST), talk(ANSWER)):
        (past,) = history.past(ME, ask(session="new"), again)
        assert past.data_class is INTERNAL
    history.note(ME, ask(), texts, finding(texts, FIRST))
    (past,) = history.past(ME, ask(session="new"), talk(FIRST))
    assert past.data_class is PRIVATE


def test_what_has_no_effect_is_not_remembered(history: History) -> None:
    texts = talk(FIRST)
    history.note(ME, ask(), texts, finding(texts, FIRST, effect=PUBLIC), said=Said((ANSWER,)))
    assert not history.past(ME, ask(), talk(FIRST, ANSWER))


@pytest.mark.parametrize("asked", [ask(session="s1"), ask()], ids=["named", "by its opening"])
def test_a_session_stays_what_it_was_once(history: History, asked: Ask) -> None:
    texts = talk(OTHER, "Go on.", FIRST, system=SYSTEM)
    history.note(ME, asked, texts, finding(texts, FIRST))
    later = talk(OTHER, "Go on.", "And tomorrow?", system=SYSTEM)  # the private turn was left out
    (past,) = history.past(ME, asked, later)
    assert past.data_class is PRIVATE
    assert past.why == "its session was private before"


def test_a_session_of_another_name_key_or_opening_is_another_one(history: History) -> None:
    texts = talk(OTHER, "Go on.", FIRST, system=SYSTEM)
    history.note(ME, ask(), texts, finding(texts, FIRST))
    history.note(ME, ask(session="s1"), texts, finding(texts, FIRST))
    assert not history.past(ME, ask(session="s2"), talk(OTHER, system=SYSTEM))
    assert not history.past(caller(key="k2"), ask(), talk(OTHER, system=SYSTEM))
    assert not history.past(ME, ask(), talk(OTHER, system="Another one."))


def test_a_class_that_a_label_raised_stays_in_its_session(history: History) -> None:
    texts = talk(FIRST, system=SYSTEM)
    raised = ask(raised="private", session="s1")
    history.note(ME, raised, texts, Searched(by_text=((), ())), said=Said((ANSWER,)))
    (past,) = history.past(ME, ask(session="s1"), talk("And now?", system=SYSTEM))
    assert past.why == "its session was said to be private before"
    # What was answered in it then is not private by its content either.
    history.note(ME, ask(session="s1"), talk(OTHER), Searched(by_text=((),)), said=Said((OTHER,)))
    assert not history.past(ME, ask(session="s2"), talk(FIRST, ANSWER, OTHER))


def test_pg_028_a_label_holds_for_a_conversation_without_a_name_that_goes_on(history: History) -> None:
    texts = talk("Is she ill?")
    history.note(ME, ask(raised="private"), texts, Searched(by_text=((),)), said=Said((ANSWER,)))
    assert history.past(ME, ask(), talk("Is she ill?", ANSWER, "Since when?"))
    assert not history.past(ME, ask(), talk("Is she ill?"))


def test_a_class_that_was_lowered_is_no_label(history: History) -> None:
    lowered = ask(raised="internal", session="s1")._replace(declassify="reviewed")
    history.note(caller("private"), lowered, talk(FIRST), Searched(by_text=((),)))
    assert not history.past(ME, ask(session="s1"), talk(FIRST))
    history.note(ME, lowered, talk(FIRST), Searched(by_text=((),)))  # here it raises, whatever reason it gives
    assert history.past(ME, ask(session="s1"), talk(FIRST))


def test_key_and_team_classes_are_not_remembered(history: History) -> None:
    who = caller("private")
    history.note(who, ask(session="s1"), talk(FIRST), Searched(by_text=((),)), said=Said((ANSWER,)))
    assert not history.past(ME, ask(session="s1"), talk(FIRST, ANSWER))


def test_teams_do_not_know_of_each_other(history: History) -> None:
    private_talk(history, talk(FIRST), FIRST)
    assert not history.past(caller(team="other"), ask(), talk(FIRST, ANSWER))
    assert history.past(caller(key="k2"), ask(), talk(FIRST, ANSWER))


def test_what_nobody_can_read_gives_the_answer_its_class(history: History) -> None:
    history.note(ME, ask(session="a"), talk(OTHER), Searched(by_text=((),)), opaque=True, said=Said((ANSWER,)))
    (past,) = history.past(ME, ask(session="b"), talk(ANSWER))
    assert past.data_class is PRIVATE
    open_media = caller(media_class=PUBLIC)
    history.note(open_media, ask(session="c"), talk(OTHER), Searched(by_text=((),)), opaque=True, said=Said((FIRST,)))
    assert not history.past(ME, ask(session="b"), talk(FIRST))


@pytest.mark.parametrize("unread", ["budget", "timeout", "error", "scanner"])
def test_what_could_not_be_searched_whole_is_private(history: History, unread: str) -> None:
    history.note(ME, ask(session="a"), talk(OTHER), Searched(unread=unread), said=Said((ANSWER,)))
    assert history.past(ME, ask(session="a"), talk("And?"))
    assert history.past(ME, ask(session="b"), talk(ANSWER))
    assert not history.past(ME, ask(session="b"), talk(OTHER))


def test_answers_that_follow_from_a_private_text_are_private_too(history: History) -> None:
    private_talk(history, talk(FIRST), FIRST)
    texts = talk(ANSWER)  # echoed in a new session, where a detector finds nothing
    history.note(ME, ask(session="new"), texts, Searched(by_text=((),)), said=Said((OTHER,)))
    assert history.past(ME, ask(session="third"), talk(OTHER))
    assert history.past(ME, ask(session="new"), talk("Thanks"))


CLEAN = Searched(by_text=((),) * 9)


def test_that_a_session_was_private_marks_nothing_else(history: History) -> None:
    texts = talk(FIRST)
    history.note(ME, ask(session="s"), texts, finding(texts, FIRST))
    history.note(ME, ask(session="s"), talk("And now?"), CLEAN, said=Said((OTHER,)))  # the private turn was left out
    assert history.past(ME, ask(session="s"), talk("Go on"))
    assert not history.past(ME, ask(session="t"), talk(OTHER))


def test_a_session_that_was_released_stays_so_while_its_conversation_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(opened(tmp_path)) as history:
        texts = talk(FIRST)
        history.note(ME, ask(session="s"), texts, finding(texts, FIRST), said=Said((ANSWER,)))
        history.note(ME, ask(session="s"), talk("And now?"), CLEAN, said=Said((OTHER,)))
        history.flush()
        (past,) = history.past(ME, ask(session="s"), talk("And now?", OTHER, "Go on"))
        release(path, look(path, past.id), "someone", 1.0)
        for _ in range(3):
            assert not history.past(ME, ask(session="s"), talk("And now?", OTHER, "Go on"))
            history.note(ME, ask(session="s"), talk("And now?", OTHER, "Go on"), CLEAN, said=Said((OTHER,)))


def test_a_conversation_does_not_live_on_by_the_answers_it_carries(tmp_path: Path) -> None:
    """Each answer is private since the one before it is; all of that ends with the content it came from."""
    clocks, said = Clocks(), [ANSWER]
    with contextlib.closing(opened(tmp_path, clocks, days=30)) as history:
        texts = talk(FIRST)
        history.note(ME, ask(session="s"), texts, finding(texts, FIRST), said=Said((ANSWER,)))
        for turn in range(3):
            clocks.pass_days(8)
            assert history.past(ME, ask(session="s"), talk("And now?", *said))
            assert history.past(ME, ask(session="t"), talk(said[-1]))
            said.append(f"{ANSWER} That was said in turn number {turn}.")
            history.note(ME, ask(session="s"), talk("And now?", *said[:-1]), CLEAN, said=Said((said[-1],)))
        clocks.pass_days(8)
        for session in ("s", "t"):
            assert not history.past(ME, ask(session=session), talk("And now?", *said))


# ---- what begins a conversation

EXAMPLES = (
    "Example: say of a letter in one word what it is about. Letter: the parcel has never come, send it again please.",
    "delivery",
)


def questions(many: int) -> list[str]:
    return [f"Letter number {number}: {OTHER}" for number in range(many)]


def answered(history: History, texts: list[Text], raised: str | None = None) -> None:
    history.note(ME, ask(raised=raised), texts, CLEAN, said=Said(("weather",)))


@pytest.mark.parametrize("learned", ["before", "after"])
def test_the_examples_of_an_application_do_not_make_one_conversation_of_all(history: History, learned: str) -> None:
    private, others = talk(*EXAMPLES, "Is she ill?", system=SYSTEM), questions(MANY)
    if learned == "after":
        answered(history, private, raised="private")
        assert history.past(ME, ask(), talk(*EXAMPLES, OTHER, system=SYSTEM)), "nobody knows yet whose opening it is"
    for other in others:
        answered(history, talk(*EXAMPLES, other, system=SYSTEM))
    if learned == "before":
        answered(history, private, raised="private")
    assert not history.past(ME, ask(), talk(*EXAMPLES, OTHER, system=SYSTEM))
    assert not history.past(ME, ask(), talk(*EXAMPLES, others[0], "weather", "Since when?", system=SYSTEM))
    assert history.past(ME, ask(), talk(*EXAMPLES, "Is she ill?", "Yes.", "Since when?", system=SYSTEM))


def test_a_conversation_that_is_sent_without_its_middle_keeps_its_opening(history: History) -> None:
    answered(history, talk(OTHER), raised="private")
    for turn in range(3 * MANY):
        answered(history, talk(OTHER, *(f"turn {turn + place}" for place in range(4))))
    assert history.past(ME, ask(), talk(OTHER, "turn 90", "turn 91", "turn 92"))


def test_what_a_cache_key_or_a_user_has_in_common_is_no_session(history: History) -> None:
    """One key for all users of an application: one private request holds back nobody else's."""
    body = {"model": "auto", "prompt_cache_key": "app", "user": "u", "safety_identifier": "s"}
    one, two = (
        make_ask(f"req_{n}", "chat/completions", {**body, "messages": [{"role": "user", "content": text}]}, 99, [])
        for n, text in enumerate((FIRST, OTHER))
    )
    history.note(ME, one, talk(FIRST), finding(talk(FIRST), FIRST), said=Said((ANSWER,)))
    assert history.past(ME, one, talk(FIRST))
    assert not history.past(ME, two, talk(OTHER))


# ---- what a kind means today


def test_what_means_less_today_counts_for_less(tmp_path: Path) -> None:
    texts, some = talk(FIRST), (Found("card", PRIVATE), Found("email", INTERNAL))
    with contextlib.closing(opened(tmp_path)) as history:
        history.note(ME, ask(session="s"), texts, Searched(some, "", (some,)), said=Said((ANSWER,)))
        history.note(ME, ask(session="e"), talk(ANSWER), CLEAN, said=Said((OTHER,)))  # private by the answer alone
        history.note(ME, ask(session="u"), talk("Hi"), Searched(unread="budget"))
    wanted = {"s": talk("Hi"), "x": texts, "y": talk(ANSWER), "z": talk(OTHER)}
    tried: list[tuple[dict[str, DataClass], DataClass | None]] = [
        ({}, PRIVATE), ({"card": INTERNAL}, INTERNAL), ({"card": PUBLIC}, None), ({"email": PUBLIC}, PRIVATE),
        ({"card": PUBLIC, "email": INTERNAL}, INTERNAL), ({"card": PUBLIC, "email": PUBLIC}, None),
        ({"card": DataClass.secret}, PRIVATE),
    ]  # fmt: skip
    for effects, left in tried:
        today = {"email": INTERNAL, **effects}
        with contextlib.closing(opened(tmp_path, **today)) as history:
            for session, again in wanted.items():
                classes = {past.data_class for past in history.past(ME, ask(session=session), again)}
                expected = INTERNAL if left is None and today["email"] is INTERNAL else left
                assert classes == ({expected} if expected is not None else set()), (effects, session)
            assert history.past(ME, ask(session="u"), talk("Hi")), "what could not be searched is no kind"
    with contextlib.closing(opened(tmp_path, iban=PUBLIC)) as history:
        assert history.past(ME, ask(session="s"), talk("Hi")), "what is not known to mean less means what it did"


def test_a_session_counts_while_one_of_its_kinds_does_whichever_was_found_first(tmp_path: Path) -> None:
    with contextlib.closing(opened(tmp_path)) as history:
        for kind in ("card", "iban", "card"):
            history.note(ME, ask(session="s"), talk(FIRST), finding(talk(FIRST), FIRST, kind=kind))
            history.flush()
    for public, counts in ((("card",), True), (("iban",), True), (("card", "iban"), False)):
        with contextlib.closing(opened(tmp_path, **dict.fromkeys(public, PUBLIC))) as history:
            assert bool(history.past(ME, ask(session="s"), talk("Hi"))) is counts


def test_nobody_knows_what_was_not_searched_so_its_session_is_private(history: History) -> None:
    history.unsearched(ME, ask(session="s1"), talk(OTHER))
    assert history.past(ME, ask(session="s1"), talk("Go on"))
    assert not history.past(ME, ask(session="s2"), talk(OTHER))
    history.unsearched(ME, ask(), talk("Hi"), said=Said((ANSWER,)))  # too short to be a session without its answer
    assert history.past(ME, ask(), talk("Hi", ANSWER, "Go on"))


def test_an_answer_too_long_to_be_kept_leaves_its_session_private(history: History) -> None:
    texts = talk(FIRST)
    history.note(ME, ask(session="s1"), texts, finding(texts, FIRST), said=Said(()))
    assert history.past(ME, ask(session="s1"), talk("Go on"))


def test_pg_006_an_earlier_turn_counts_while_the_last_one_is_clean(history: History) -> None:
    private_talk(history, talk(FIRST), FIRST)
    past, *_ = history.past(ME, ask(session="other"), talk(FIRST, ANSWER, "Thanks, and what is the capital of France?"))
    assert past.data_class is PRIVATE


def test_every_mark_that_counts_is_named_the_highest_first(history: History) -> None:
    texts = talk(OTHER, "Ah.", FIRST)
    history.note(ME, ask(session="s"), talk(OTHER), finding(talk(OTHER), OTHER, effect=INTERNAL, kind="email"))
    history.note(ME, ask(session="t"), texts, finding(texts, FIRST))
    found = history.past(ME, ask(session="s"), texts)
    assert [one.data_class for one in found] == [PRIVATE, INTERNAL, INTERNAL]
    assert [one.why for one in found][:2] == [
        "an earlier request had a text of it, in which was found: card",
        "an earlier request had a text of it, in which was found: email",
    ]
    assert all(one.id for one in found)


def test_a_request_of_very_many_texts_is_private(history: History) -> None:
    many = [Text(f"input[{n}]", f"{OTHER} {n}") for n in range(MOST_LOOKED_UP // 2)]
    assert not history.past(ME, ask(), many)
    more = [Text(f"input[{n}]", f"{OTHER} {n}") for n in range(MOST_LOOKED_UP + 1)]
    (past,) = history.past(ME, ask(), more)
    assert past.data_class is PRIVATE


# ---- workers, time, and a store that is not there


def test_another_worker_knows_once_it_is_on_disk_and_so_does_the_next_start(tmp_path: Path) -> None:
    with contextlib.closing(opened(tmp_path)) as one, contextlib.closing(opened(tmp_path)) as two:
        private_talk(one, talk(FIRST), FIRST)
        assert one.past(ME, ask(session="new"), talk(ANSWER))  # at once
        one.flush()
        assert two.past(ME, ask(session="new"), talk(ANSWER))
    with contextlib.closing(opened(tmp_path)) as third:
        assert third.past(ME, ask(session="new"), talk(ANSWER))


def test_it_ends_after_its_days_and_not_before(tmp_path: Path) -> None:
    clocks = Clocks()
    with contextlib.closing(opened(tmp_path, clocks, days=30)) as history:
        private_talk(history, talk(FIRST), FIRST)
        clocks.pass_days(29.9)
        assert history.past(ME, ask(), talk(ANSWER))
        clocks.pass_days(0.2)
        assert not history.past(ME, ask(session="new"), talk(ANSWER))


def test_a_session_does_not_live_on_by_being_used(tmp_path: Path) -> None:
    clocks = Clocks()
    with contextlib.closing(opened(tmp_path, clocks, days=30)) as history:
        texts = talk(FIRST)
        history.note(ME, ask(session="s"), texts, finding(texts, FIRST))
        for _ in range(4):
            clocks.pass_days(8)
            history.note(ME, ask(session="s"), talk(OTHER), Searched(by_text=((),)))
        assert not history.past(ME, ask(session="s"), talk(OTHER))


def test_a_message_that_is_sent_again_is_remembered_anew(tmp_path: Path) -> None:
    clocks = Clocks()
    with contextlib.closing(opened(tmp_path, clocks, days=30)) as history:
        private_talk(history, talk(FIRST), FIRST)
        clocks.pass_days(20)
        private_talk(history, talk(FIRST), FIRST)
        history.flush()
        clocks.pass_days(20)
        assert history.past(ME, ask(session="new"), talk(FIRST))


def test_a_clock_that_is_far_ahead_at_a_start_ends_nothing(tmp_path: Path) -> None:
    clocks = Clocks()
    with contextlib.closing(opened(tmp_path, clocks, days=30)) as history:
        private_talk(history, talk(FIRST), FIRST)
    clocks.at += 31 * 86_400
    with contextlib.closing(opened(tmp_path, clocks, days=30)) as history:
        texts = talk(OTHER)
        history.note(ME, ask(), texts, finding(texts, OTHER))  # with what it writes it removes what has ended
        history.flush()
        assert history.past(ME, ask(session="new"), talk(ANSWER))
    clocks.at -= 31 * 86_400
    with contextlib.closing(opened(tmp_path, clocks, days=30)) as history:
        assert history.past(ME, ask(session="new"), talk(ANSWER))
        clocks.pass_days(30)  # these are seen to pass; with the day that a stop may have lasted it has ended
        assert not history.past(ME, ask(session="new"), talk(ANSWER))


@pytest.mark.parametrize("days", [-40, 40, 40_000])
def test_a_jump_of_the_clock_opens_nothing(tmp_path: Path, days: float) -> None:
    clocks = Clocks()
    with contextlib.closing(opened(tmp_path, clocks)) as history:
        private_talk(history, talk(FIRST), FIRST)
        clocks.at += days * 86_400
        assert history.past(ME, ask(session="new"), talk(ANSWER))
        texts = talk(OTHER)
        history.note(ME, ask(), texts, finding(texts, OTHER))
        clocks.at -= days * 86_400
        assert history.past(ME, ask(session="new"), talk(ANSWER))
        assert history.past(ME, ask(session="new"), talk(OTHER))


def test_a_clock_set_back_over_a_restart_revives_nothing_and_ends_nothing_early(tmp_path: Path) -> None:
    clocks = Clocks()
    with contextlib.closing(opened(tmp_path, clocks)) as history:
        private_talk(history, talk(FIRST), FIRST)
        clocks.pass_days(31)
        texts = talk(OTHER)
        history.note(ME, ask(), texts, finding(texts, OTHER))
    clocks.at -= 60 * 86_400
    with contextlib.closing(opened(tmp_path, clocks)) as history:
        assert not history.past(ME, ask(session="new"), talk(ANSWER))
        assert history.past(ME, ask(session="new"), talk(OTHER))
        texts = talk(FIRST)
        history.note(ME, ask(), texts, finding(texts, FIRST))
        assert history.past(ME, ask(session="new"), talk(FIRST))
    clocks.at += 65 * 86_400
    with contextlib.closing(opened(tmp_path, clocks)) as history:  # the clock is right again, and days have passed
        assert history.past(ME, ask(session="new"), talk(FIRST))


def test_what_was_released_may_leave_and_the_ledger_says_who_did_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(opened(tmp_path)) as history:
        private_talk(history, talk(FIRST), FIRST)
        history.flush()
        (past,) = history.past(ME, ask(session="new"), talk(ANSWER))
        (mark,) = look(path, past.id)
        release(path, [mark], "someone", 1.0)
        assert not history.past(ME, ask(session="new"), talk(ANSWER))
        assert history.past(ME, ask(session="new"), talk(FIRST))
    with contextlib.closing(sqlite3.connect(path)) as db:
        ((kind, request, body),) = db.execute("SELECT kind, request, body FROM events")
    assert (kind, request) == ("released", ask().id)
    assert past.id in body
    assert '"user":"someone"' in body


@pytest.mark.parametrize("how", ["deleted", "other table", "damaged", "of another secret"])
def test_pg_028_a_store_that_is_lost_or_cannot_be_read_counts_as_private(tmp_path: Path, how: str) -> None:
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(opened(tmp_path)) as history:
        assert not history.past(ME, ask(), talk(OTHER))
        if how == "deleted":
            path.unlink()
        elif how == "damaged":
            path.unlink()
            path.write_bytes(b"x" * 8192)
        else:
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("DROP TABLE marks" if how == "other table" else "UPDATE history SET value = 'x'")
                db.commit()
        (past,) = history.past(ME, ask(), talk(OTHER))
        assert past.data_class is PRIVATE


def test_a_ledger_that_was_lost_is_seen_at_the_next_start_and_released_by_a_person(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    opened(tmp_path).close()
    for file in tmp_path.glob("ledger.sqlite*"):
        file.unlink()
    with contextlib.closing(opened(tmp_path)) as history:
        (past,) = history.past(ME, ask(), talk(OTHER))
        assert (past.data_class, past.id) == (PRIVATE, "lost")
        release_loss(path, "someone", 1.0)
        assert not history.past(ME, ask(), talk(OTHER))


@pytest.mark.parametrize("moved", [False, True])
def test_another_secret_loses_the_history_too(tmp_path: Path, moved: bool) -> None:
    opened(tmp_path).close()
    if moved:
        (tmp_path / "begun").unlink()
    with contextlib.closing(opened(tmp_path, secret="6" * 64)) as history:
        assert history.past(ME, ask(), talk(OTHER))


def test_the_ledger_holds_no_text_and_no_hash_that_anybody_could_make(tmp_path: Path) -> None:
    with contextlib.closing(opened(tmp_path)) as history:
        private_talk(history, talk(FIRST), FIRST)
    held = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    form = "".join(FIRST.split()).encode()
    guesses = [hashlib.new(name, form).digest()[:16] for name in ("sha256", "blake2b", "md5")]
    assert FIRST.encode()[:20] not in held
    assert not any(guess in held for guess in guesses)
    assert hashlib.blake2b(form, digest_size=16).digest() not in held


def test_a_short_text_is_not_remembered_whatever_was_found_in_it(history: History) -> None:
    texts = talk("It is hers.", [FIRST[:50], FIRST[:13]])
    history.note(ME, ask(session="s"), texts, finding(texts, "It is hers.", FIRST[:50]), said=Said(("Yes.",)))
    assert not history.past(ME, ask(session="t"), talk("It is hers.", "Yes.", FIRST[:50]))


def test_found_of_texts_beside_the_talk_makes_no_message(history: History) -> None:
    texts = [Text("metadata.note", FIRST), Text("user", OTHER), *talk("Hi")]
    history.note(ME, ask(session="s"), texts, finding(texts, FIRST, OTHER))
    assert not history.past(ME, ask(session="t"), [Text("metadata.note", FIRST), *talk(FIRST)])
    assert history.past(ME, ask(session="s"), talk("Hi"))


def test_several_kinds_are_named_in_order(history: History) -> None:
    texts = talk(FIRST)
    some = (Found("iban", PRIVATE), Found("card", PRIVATE), Found("email", PUBLIC))
    history.note(ME, ask(session="s"), texts, Searched(some, "", (some,)))
    (past,) = history.past(ME, ask(session="t"), texts)
    assert past.why.endswith("card, iban")
