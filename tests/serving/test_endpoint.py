"""The watch over one server: how often it is read, what counts as progress, and that reading it costs it little."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from math import inf

import pytest

from serving import probe, scrape
from serving.endpoint import Timing, Watch, fullness, pause_s
from serving.probe import ProbeError, Target
from serving.scrape import Load

TIMING = Timing()


@pytest.mark.parametrize(
    ("load", "limit", "idle_s", "pause"),
    [
        (Load(running=0, waiting=0, kv_use=0.0), 16, 0, 1.0), (Load(running=0, waiting=0, kv_use=0.0), 16, 31, 2.0),
        (Load(running=7, waiting=0, kv_use=0.1), 16, 0, 1.0), (Load(running=8, waiting=0, kv_use=0.1), 16, 0, 0.25),
        (Load(running=2, waiting=0, kv_use=0.6), 16, 0, 0.25), (Load(running=2, waiting=0, kv_use=1.0), 16, 0, 1.0),
        (Load(running=12, waiting=4, kv_use=0.6), 16, 0, 1.0), (Load(running=12, waiting=0), 0, 0, 1.0),
        (Load(), 16, 0, 1.0), (None, 16, 0, 1.0),
    ],
)  # fmt: skip
def test_it_is_read_most_often_between_half_full_and_full(
    load: Load | None, limit: int, idle_s: float, pause: float
) -> None:  # fmt: skip
    assert pause_s(TIMING, load, limit, 0.002, idle_s) == pause


def test_a_server_that_answers_slowly_is_asked_a_twentieth_of_the_time_and_still_in_time() -> None:
    busy = Load(running=8, waiting=0)
    assert pause_s(TIMING, busy, 16, 0.060, 0) == pytest.approx(1.2)
    assert pause_s(TIMING, busy, 16, 2.5, 0) == TIMING.slow_scrape_s
    assert max(TIMING.slow_scrape_s, TIMING.idle_scrape_s) < TIMING.quiet_s, "or rare readings look like a hang"
    assert TIMING.slow_scrape_s + TIMING.scrape_timeout_s < 15, "older readings are not believed by the router"


def test_what_is_unknown_does_not_make_it_full() -> None:
    assert fullness(Load(), 16) == 0 and fullness(Load(running=4, waiting=4), 16) == 0.5


class Server:
    """Stands in for the server: what each page says next, and which were asked for."""

    def __init__(self) -> None:
        self.narrow: str | ProbeError = "vllm:num_requests_running 1"
        self.whole: str | ProbeError = "vllm:num_requests_running 2"
        self.asked: list[str] = []

    async def metrics(self, target: Target, timeout_s: float, path: str = "/metrics") -> str:
        self.asked.append(path.partition("?")[0])
        said = self.narrow if path == scrape.NARROW_PAGE else self.whole
        if isinstance(said, ProbeError):
            raise said
        return said


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    monkeypatch.setattr(probe, "metrics", made.metrics)
    yield made


def watch() -> Watch:
    return Watch(Target("unix:/x"), TIMING)


async def test_the_short_page_is_enough(server: Server) -> None:
    one = watch()
    await one.read()
    await one.read()
    assert one.load == Load(running=1) and server.asked == ["/metrics/", "/metrics/"]


@pytest.mark.parametrize("narrow", [ProbeError("HTTP 404", 404), ProbeError("HTTP 307", 307), "", "# nothing\n"])
async def test_a_server_without_a_short_page_is_asked_for_the_long_one_from_then_on(
    server: Server, narrow: str | ProbeError
) -> None:  # fmt: skip
    server.narrow = narrow
    one = watch()
    await one.read()
    await one.read()
    assert one.load == Load(running=2) and server.asked == ["/metrics/", "/metrics", "/metrics"]


async def test_a_server_that_does_not_answer_at_all_is_not_asked_twice(server: Server) -> None:
    server.narrow = ProbeError("no answer within 3 s")
    one = watch()
    await one.read()
    assert one.load is None and server.asked == ["/metrics/"]
    server.narrow = "vllm:num_requests_running 1"
    await one.read()
    assert one.load == Load(running=1) and one.narrow


async def test_requests_turned_away_are_no_progress_of_a_stuck_engine(server: Server) -> None:
    one, seen = watch(), set()
    for rejected in range(3):
        server.narrow = f"vllm:num_requests_running 1\nvllm:admission_rejections_total {rejected}"
        await one.read()
        seen.add(one.moved_at)
    (moved,) = seen
    server.narrow = "vllm:num_requests_running 1\nvllm:generation_tokens_total 1"
    await one.read()
    assert one.moved_at > moved


async def test_an_interrupted_request_is_remembered_and_an_older_count_is_not_one(server: Server) -> None:
    one = watch()
    for count, seen in (("", False), (" 7", False), (" 7", False), (" 8", True), (" 0", True)):
        server.narrow = "vllm:num_requests_running 1" + (f"\nvllm:num_preemptions_total{count}" if count else "")
        await one.read()
        assert (one.preempted_s() is not None) is seen
    first = one.preempted_s()
    await asyncio.sleep(0)
    assert first is not None and (one.preempted_s() or 0) >= first


async def test_what_a_probe_did_is_told_from_what_others_asked_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little it was: short texts for a model of embeddings are work too."""

    async def one_token(*_: object) -> str:
        return ""

    monkeypatch.setattr(probe, "one_token", one_token)
    one = watch()
    await one.read()
    await one.read()
    assert not one.probed
    await one.answers("m", 1)
    await one.read()
    assert one.probed
    one._probed_at -= 60
    await one.read()
    assert not one.probed
    one._began, one._probed_at = one._began - 3, one.read_at - 2
    await one.read()
    assert one.probed, "the reading before was asked for earlier, and may not have had it"


@pytest.mark.parametrize(("idle_s", "moves"), [(30.0, False), (inf, True)])
async def test_an_idle_engine_that_makes_no_token_stands_still_where_it_is_asked_while_idle(
    server: Server, monkeypatch: pytest.MonkeyPatch, idle_s: float, moves: bool
) -> None:
    """An attached one is not asked: that it was full once says nothing of it later."""
    said = ["HTTP 503: too many requests", ""]

    async def one_token(*_: object) -> str:
        return said.pop(0)

    monkeypatch.setattr(probe, "one_token", one_token)
    server.narrow = "vllm:num_requests_running 0"
    one = Watch(Target("unix:/x"), replace(TIMING, idle_s=idle_s))
    await one.read()
    await one.answers("m", 1)
    moved = one.moved_at
    await one.read()
    assert (one.moved_at > moved) is moves
    await one.answers("m", 1)
    moved = one.moved_at
    await one.read()
    assert one.moved_at > moved, "it is well again"


def test_the_shortest_allowed_patience_is_still_longer_than_the_pause_between_readings() -> None:
    """Else an idle engine is asked for a token all the time, and one with slow pages is called hung."""
    timing = TIMING.hanging(3)
    idle, slow = pause_s(timing, Load(running=0), 16, 0.01, 60), pause_s(timing, Load(running=9), 16, 9, 0)
    assert max(idle, slow) < timing.quiet_s < timing.out_s == 3
