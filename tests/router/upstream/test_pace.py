"""What is learned of an engine that others use at the same time is what the engine does, and not what they do to it."""

from __future__ import annotations

import random

import pytest

from router.decision.prediction import predict
from router.records import Usage
from router.upstream.fading import Mean
from router.upstream.pace import Paces, There
from tests.fakes.reading import Engine, Job

QUICK = Engine(prefill=10_000.0, step=2048, least_s=0.02, each_s=0.0005)
SLOW = Engine(prefill=800.0, step=2048, least_s=0.03, each_s=0.004)
"""About a small model on one core of a CPU."""


def there() -> There:
    return There("near", Mean())


def streamed(seen: There, size: int, at: float, first_s: float, whole_s: float) -> None:
    """A prompt of so many bytes is sent; its first token comes, and later its stream is left."""
    sent = seen.sent(size, 0, at)
    sent.first(at + first_s)
    sent.left(at + whole_s)


def known(size: int, first_s: float) -> There:
    """An engine that has read ten such prompts in 1000 s, one at a time."""
    seen = there()
    for number in range(10):
        streamed(seen, size, 100.0 * number, first_s, 2.0)
    seen.pace(1000.0)
    return seen


def load(a_second: float, count: int, *, seed: int = 1, streams: bool = True, others: bool = False) -> list[Job]:
    """Requests of usual lengths that come at random."""
    draw, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        at += draw.expovariate(a_second)
        prompt, output = int(draw.lognormvariate(6, 1)), draw.randint(10, 150)
        found.append(Job(at, max(20, prompt), output, streams=streams, others=others))
    return found


def off(jobs: list[Job]) -> list[float]:
    """By how many seconds each wait was predicted wrongly, of those that the router sent once it knew something."""
    own = sorted((job for job in jobs if not job.others), key=lambda job: job.at)
    pairs = [(predict(job.seen, job.prompt).wait_s, job.began - job.at) for job in own[len(own) // 4 :]]
    return [expected - came for expected, came in pairs if expected is not None]


def test_of_prompts_read_alone_the_pace_is_exact() -> None:
    lengths = (30, 300, 3000, 12_000)
    seen = there()
    QUICK.run(seen, [Job(5.0 * number, lengths[number % 4], 50) for number in range(40)])
    pace = seen.pace(500.0)
    assert pace is not None and pace.prefill == pytest.approx(9300, rel=0.1)  # 20 ms of each step are no reading
    assert pace.first_s == pytest.approx(0.02, abs=0.01)
    assert pace.decode == pytest.approx(1 / 0.0205, rel=0.02)
    assert pace.ratio == pytest.approx(4.0, rel=0.01)


def test_tiny_prompts_alone_say_nothing_of_how_fast_long_ones_are_read() -> None:
    """Fifty tokens in 23 ms are no 2,000 a second: by that, one long prompt would look like a wait of a minute."""
    seen = there()
    QUICK.run(seen, [Job(5.0 * number, 30, 50) for number in range(40)])
    pace = seen.pace(500.0)
    assert pace is not None and pace.prefill is None and pace.first_s == pytest.approx(0.023, abs=0.002)


@pytest.mark.parametrize("engine", [QUICK, SLOW], ids=["quick", "slow"])
@pytest.mark.parametrize("share", [0.3, 0.7, 1.2])
def test_where_requests_overlap_waits_are_still_foreseen(engine: Engine, share: float) -> None:
    """To take each first token's time for that of its own prompt would be wrong by as many as wait."""
    jobs = engine.run(there(), load(share * engine.prefill / 700, 400))
    wrong = off(jobs)
    longest = max(job.began - job.at for job in jobs)
    assert len(wrong) > 200
    assert sum(abs(one) for one in wrong) / len(wrong) < 0.1 + 0.25 * longest
    if share < 0.5:  # nobody is told of a wait that there is not
        assert sorted(wrong)[len(wrong) * 95 // 100] < 1.5


def test_of_an_engine_that_others_use_as_much_waits_are_foreseen_too() -> None:
    jobs = QUICK.run(there(), load(4.0, 250) + load(4.0, 250, seed=2, others=True))
    wrong = off(jobs)
    assert sum(abs(one) for one in wrong) / len(wrong) < 0.1 + 0.25 * max(job.began - job.at for job in jobs)


def test_answers_that_come_as_a_whole_do_not_spoil_it() -> None:
    """Their first token is not seen, and the engine may rest while they seem to be read."""
    seen = there()
    QUICK.run(seen, load(3.0, 300) + load(3.0, 300, seed=2, streams=False))
    pace = seen.pace(500.0)
    assert pace is not None and pace.prefill is not None and 3000 < pace.prefill < 13_000
    assert seen.unstarted(1e6) == 0


def test_what_the_engine_has_read_before_is_not_counted_as_read() -> None:
    seen = there()
    for number in range(20):
        now, tokens = 10.0 * number, 4000 if number % 2 else 1000
        sent = seen.sent(tokens * 4, tokens * 2, now)  # half of it is cached
        sent.first(now + tokens / 2 / 1000)
        sent.ended(Usage(tokens, 1), 0, now + 5.0)
    pace = seen.pace(500.0)
    assert pace is not None and pace.prefill == pytest.approx(1000, rel=0.05)


def test_one_that_stood_still_for_an_hour_does_not_decide() -> None:
    seen, paced = there(), []
    for number in range(40):
        now = 10_000.0 * number
        streamed(seen, 16_000, now, 3600.0 if number == 30 else 0.4, 4000.0)
        paced.append(seen.pace(now + 4000.0))
    worst = [pace.prefill for pace in paced if pace is not None and pace.prefill]
    assert worst[0] == pytest.approx(10_000, rel=0.01)
    assert min(worst) > 2000


def test_an_engine_that_has_become_slower_is_followed() -> None:
    seen = there()
    for number in range(200):
        streamed(seen, 16_000, 2.0 * number, 1.0 if number >= 100 else 0.1, 1.5)
    pace = seen.pace(400.0)
    assert pace is not None and pace.prefill == pytest.approx(4000, rel=0.35)


def test_what_of_a_long_prompt_has_been_read_is_not_waited_for() -> None:
    seen = known(40_000, 1.0)
    seen.sent(400_000, 0, 1000.0)  # ten seconds of reading
    assert seen.unstarted(1000.0) == 100_000
    assert 45_000 < seen.unstarted(1005.0) < 55_000
    assert 0 < seen.unstarted(1020.0) <= 5001  # later than expected, and not there yet


def test_a_request_that_was_left_is_no_longer_waited_for() -> None:
    seen = there()
    sent = seen.sent(4000, 0, 1.0)
    assert seen.unstarted(1.0) == 1000
    sent.left(2.0)
    assert seen.unstarted(2.0) == 0 and seen.pace(2.0) is None


def test_pictures_are_not_taken_for_text() -> None:
    seen = there()
    seen.sent(4_000_000, 0, 1.0, pictured=True).ended(Usage(900, 50), 0, 3.0)
    seen.sent(4_000_000, 0, 4.0, pictured=True)
    assert seen.unstarted(4.0) == 4096
    pace = seen.pace(4.0)
    assert pace is None or pace.ratio is None


def test_what_an_engine_has_beyond_ours_is_others() -> None:
    seen = there()
    first, second = seen.sent(40, 0, 10.0), seen.sent(40, 0, 10.0)
    first.ended(Usage(10, 5), 0, 11.5)
    second.ended(Usage(10, 5), 0, 11.6)
    seen.read(5, 0, 11.0)
    assert seen.others == 3  # of five that it had then two were ours, though none of them is there now
    seen.read(2, 0, 11.5)
    assert seen.others == 0
    seen.read(1, 1, 12.0)
    assert seen.others == 2
    seen.read(None, 0, 13.0)
    assert seen.others == 0


def test_replicas_share_what_their_model_makes_of_text_and_nothing_else() -> None:
    paces = Paces()
    sent = paces.there("a", "m").sent(4000, 0, 1.0)
    sent.first(2.0)
    sent.ended(Usage(2000, 20), 0, 3.0)
    other = paces.there("b", "m").pace(4.0)
    assert other is not None and other.ratio == 2.0 and other.decode is None
    assert paces.there("c", "n").pace(4.0) is None
    paces.restarted("a")
    again = paces.there("a", "m").pace(5.0)
    assert again is not None and again.ratio == 2.0 and again.decode is None
    paces.only(["b"])
    assert paces.known("a") is None and paces.known("b") is not None


def test_an_engine_that_stood_still_and_goes_on_has_our_requests_and_no_others() -> None:
    paces = Paces()
    sent = paces.there("a", "m").sent(4000, 0, 10.0)
    paces.restarted("a")  # serving said for a while that it was stalled
    seen = paces.there("a", "m")
    seen.read(1, 0, 11.0)
    assert (seen.others, seen.unstarted(11.0)) == (0, 1000)
    sent.left(12.0)
    seen.read(1, 0, 13.0)
    assert (seen.others, seen.unstarted(13.0)) == (1, 0)


def test_time_in_which_the_engine_may_have_rested_is_not_taken_for_reading() -> None:
    """Behind a whole answer, whose first token nobody sees: the next prompt comes long after it was read."""
    seen = there()
    for number in range(20):
        now = 100.0 * number
        first, whole = seen.sent(16_000, 0, now), seen.sent(400, 0, now, streams=False, blind=True)
        first.first(now + 0.4)
        late = seen.sent(16_000, 0, now + 50.0)
        late.first(now + 50.4)
        for sent in (first, whole, late):
            sent.left(now + 60.0)
    pace = seen.pace(2000.0)
    assert pace is not None and pace.prefill == pytest.approx(10_000, rel=0.05)


def test_a_whole_answer_is_taken_as_read_once_it_must_have_been() -> None:
    """Else its prompt would look like a wait for as long as it is being written."""
    seen = known(16_000, 0.4)
    seen.sent(16_000, 0, 1000.0, streams=False, blind=True)
    assert (seen.unstarted(1000.0), seen.unstarted(1000.5)) == (4000, 0)


def test_a_stream_that_comes_all_at_once_shows_no_wonderful_speed() -> None:
    """So an engine's very first answer can come, and all of them through a proxy that gathers them."""
    seen = there()
    sent = seen.sent(80, 0, 1.0)
    sent.first(1.2)
    met = sent.ended(Usage(20, 60), 0, 1.2003)
    assert met.tokens_per_s == pytest.approx(300, rel=0.05)
    pace = seen.pace(2.0)
    assert pace is not None and pace.decode == pytest.approx(300, rel=0.05)
