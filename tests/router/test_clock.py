"""The time that approvals and keys are held against never goes back, whatever is done to the machine's clock."""

from __future__ import annotations

from dataclasses import dataclass

from router.clock import BEHIND_S, Forward

DAY_S = 86_400.0


@dataclass
class Clocks:
    """The machine's clock, which anybody may set, and the one that nobody sets."""

    at: float = 1_800_000_000.0
    ran: float = 50.0

    def wall(self) -> float:
        return self.at

    def steady(self) -> float:
        return self.ran

    def pass_by(self, seconds: float) -> None:
        self.at += seconds
        self.ran += seconds


def test_it_is_the_machines_clock_as_long_as_that_goes_forward() -> None:
    clocks = Clocks()
    forward = Forward(clocks.at - DAY_S, clocks.wall, clocks.steady)
    assert forward.now() == clocks.at and not forward.trouble()
    clocks.pass_by(100)
    assert forward.now() == clocks.at
    clocks.at += 3 * DAY_S  # the machine slept
    assert forward.now() == clocks.at


def test_a_clock_that_is_set_back_while_it_runs_does_not_take_it_back_and_it_goes_on() -> None:
    clocks = Clocks()
    forward = Forward(0.0, clocks.wall, clocks.steady)
    before = forward.now()
    clocks.at -= 2 * DAY_S
    assert forward.now() == before
    clocks.pass_by(600)
    assert forward.now() == before + 600
    clocks.pass_by(600)
    assert forward.now() == before + 1200
    clocks.at += 2 * DAY_S + 60  # and set right again
    assert forward.now() == clocks.at


def test_a_clock_that_was_set_back_before_the_start_is_noticed_and_said() -> None:
    clocks = Clocks()
    seen = clocks.at + 2 * DAY_S
    forward = Forward(seen, clocks.wall, clocks.steady)
    assert forward.now() == seen
    assert "2.0 days behind" in forward.trouble()
    clocks.pass_by(3600)
    assert forward.now() == seen + 3600
    assert not Forward(clocks.at + BEHIND_S / 2, clocks.wall, clocks.steady).trouble()
