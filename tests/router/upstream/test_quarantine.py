"""Requests that bring engines down: known by what serving says, forgotten in time, and nothing kept of their text."""

from __future__ import annotations

from typing import Any

import pytest

from router.api.idempotency import final
from router.errors import Unprocessable
from router.records import Ask, Candidate, Endpoint
from router.upstream.quarantine import HELD_S, MOST, Quarantine, process
from serving.catalogue import Model

TEAM = "red"


class Site:
    """Serving's document and a clock, both to be changed; and a quarantine that reads them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pids: dict[str, Any] = {"a": 1, "b": 1, "c": 1}
        self.quarantine = Quarantine(self.document, lambda: self.now)

    def document(self) -> dict[str, Any]:
        return {"instances": [{"name": n, "pid": pid, "restarts": 0} for n, pid in self.pids.items()]}

    def crash(self, request: Ask, endpoint: str, *, dies: bool = True, place: str = "local") -> None:
        more = {"provider": "far", "provider_model": "m"} if place == "hosted" else {}
        model = Model(name="m", place=place, lanes=("cheap",), context=64, output=8, **more)  # type: ignore[arg-type]
        candidate = Candidate(model, Endpoint(endpoint, "m", "local", "ready", ""))  # type: ignore[call-arg]
        self.quarantine.crashed(request, TEAM, candidate, "reset")
        if dies:
            self.pids[endpoint] += 1


def asked(text: str = "the river turns back", **more: Any) -> Ask:
    return Ask("req_1", "chat/completions", {"messages": [{"role": "user", "content": text}], **more}, 10, "m", False)


@pytest.fixture
def site() -> Site:
    return Site()


def test_two_engines_that_died_over_it_are_enough(site: Site) -> None:
    site.crash(asked(), "a")
    site.quarantine.refuse(asked(), TEAM)
    site.crash(asked(), "b")
    with pytest.raises(Unprocessable) as refused:
        site.quarantine.refuse(asked(), TEAM)
    assert (refused.value.status, refused.value.code) == (422, "request_quarantined")
    assert refused.value.retry_after == HELD_S
    assert "river" not in refused.value.message
    site.quarantine.refuse(asked("another one"), TEAM)


def test_it_says_when_it_may_be_asked_again(site: Site) -> None:
    """The hold ends with that of the first engine: then one is known of, and that is too few."""
    site.crash(asked(), "a")
    site.now = 100.0
    site.crash(asked(), "b")
    site.now = 150.0
    with pytest.raises(Unprocessable) as refused:
        site.quarantine.refuse(asked(), TEAM)
    assert refused.value.retry_after == HELD_S - 150
    assert (b"retry-after", b"450") in refused.value.headers()
    assert not final(refused.value), "it must not be repeated for a day"
    site.now += refused.value.retry_after
    site.quarantine.refuse(asked(), TEAM)


def test_one_engine_that_died_twice_counts_twice(site: Site) -> None:
    site.crash(asked(), "a")
    site.crash(asked(), "a")
    with pytest.raises(Unprocessable):
        site.quarantine.refuse(asked(), TEAM)


@pytest.mark.parametrize("seen", ["at once", "in between"])
def test_copies_of_it_that_one_engine_had_when_it_ended_count_once(site: Site, seen: str) -> None:
    """Two callers, or one that tried again too soon: nothing says that a second engine would end over it."""
    site.crash(asked(), "a", dies=False)
    if seen == "in between":  # serving says already that there is no process
        site.pids["a"] = None
    site.crash(asked(), "a", dies=False)
    site.pids["a"] = 2
    site.quarantine.refuse(asked(), TEAM)
    site.crash(asked(), "b")
    with pytest.raises(Unprocessable):
        site.quarantine.refuse(asked(), TEAM)


def test_no_team_is_told_what_another_one_asked(site: Site) -> None:
    for endpoint in "ab":
        site.crash(asked(), endpoint)
    site.quarantine.refuse(asked(), "blue")


def test_once_it_is_over_it_costs_nothing_again(site: Site) -> None:
    site.crash(asked(), "a")
    site.now = 5.0
    site.crash(asked("another one"), "a")
    site.now = HELD_S
    site.quarantine.refuse(asked("a third one"), TEAM)
    assert len(site.quarantine._crashes) == 1
    site.now = HELD_S + 5.0
    site.quarantine.refuse(asked("a third one"), TEAM)
    assert not site.quarantine._crashes


def test_a_request_of_another_size_is_not_even_hashed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """For ten minutes after a crash a megabyte of text must cost no more than before."""
    site.crash(asked(), "a")
    hashed: list[int] = []
    digest = site.quarantine._digest

    def told(request: Ask, team: str) -> bytes:
        hashed.append(request.size)
        return digest(request, team)

    monkeypatch.setattr(site.quarantine, "_digest", told)
    for _ in range(2):
        site.quarantine.refuse(asked()._replace(size=11), TEAM)
        site.quarantine.answered(asked()._replace(size=11), TEAM)
    assert not hashed and site.quarantine._crashes
    site.quarantine.answered(asked(), TEAM)
    site.quarantine.answered(asked(), TEAM)
    assert hashed == [10] and not site.quarantine._crashes


def test_a_broken_connection_to_a_process_that_lives_is_none(site: Site) -> None:
    for endpoint in "abc":
        site.crash(asked(), endpoint, dies=False)
    site.quarantine.refuse(asked(), TEAM)


def test_what_breaks_at_the_door_is_none(site: Site) -> None:
    for endpoint in "ab":
        site.crash(asked(), endpoint, place="hosted")
    site.quarantine.refuse(asked(), TEAM)


def test_an_answer_clears_it_and_so_does_time(site: Site) -> None:
    site.crash(asked(), "a")
    site.quarantine.answered(asked(), TEAM)
    site.crash(asked(), "b")
    site.quarantine.refuse(asked(), TEAM)
    site.crash(asked(), "c")
    site.now = HELD_S
    site.quarantine.refuse(asked(), TEAM)


def test_nothing_of_a_request_is_kept_and_two_processes_know_it_by_different_names(site: Site) -> None:
    other = Site()
    for one in (site, other):
        one.crash(asked(), "a")
    kept = [next(iter(one.quarantine._crashes)) for one in (site, other)]
    assert kept[0] != kept[1] and all(len(digest) == 16 for digest in kept)
    assert "river" not in repr(site.quarantine._crashes)


def test_no_more_than_so_many_are_remembered(site: Site) -> None:
    for number in range(MOST + 5):
        site.crash(asked(str(number)), "a")
    assert len(site.quarantine._crashes) == MOST == site.quarantine._sizes[10]


@pytest.mark.parametrize("document", [None, {}, [], {"instances": None}, {"instances": [None, 1, {}]}])
def test_a_document_of_another_shape_says_nothing(document: Any) -> None:
    assert process(document, "a") is None
