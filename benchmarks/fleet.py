"""A day of a fleet behind one of the four routers, hour by hour, and what it comes to.

So that a day takes minutes it is a sample: each hour is a window of some seconds out of its middle, after a minute in
which what an overloaded hour fills is filled, and a fleet is made of equal cells of a few engines, of which one is
simulated with its share of the requests (a Poisson process, thinned, is one). Each hour's window stands for the hour
and the cell for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

from benchmarks.cell import simulated
from benchmarks.day import HOURS, Day, traffic
from benchmarks.replica import Profile
from benchmarks.routers import ROUTERS
from benchmarks.samples import quantile
from benchmarks.scene import Far, setup_of
from benchmarks.spill import Counted, Row, figures, in_time, of_kind


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated."""

    profile: Profile
    gpus: int
    cell: int
    """Engines of a cell."""
    day: Day
    provider: Far
    window_s: float
    warm_s: float
    seed: int
    gpu_hour_usd: float
    allowed_s: float
    deadline_s: int

    @property
    def engines(self) -> int:
        return self.gpus // self.profile.gpus

    @property
    def cells(self) -> float:
        return self.engines / self.cell

    @property
    def of_an_hour(self) -> float:
        """Requests of an hour that one of its window stands for."""
        return self.cells * 3600 / self.window_s

    @property
    def capacity(self) -> float:
        """Requests a second that all engines get done."""
        return self.profile.capacity(self.day.prompt, self.day.output) * self.engines


@dataclass(frozen=True, slots=True)
class Hour:
    """What came of one hour's window with one router."""

    quick: list[Row]
    """Of interactive requests."""
    slow: list[Row]
    """Of those that had time."""
    counted: Counted
    instead_usd: float
    """What its answers would cost hosted."""

    @property
    def rows(self) -> list[Row]:
        return [*self.quick, *self.slow]


def hour_of(fleet: Fleet, router: str, hour: int) -> Hour:
    """Simulate one hour's window."""
    setup = setup_of(router, fleet.profile, fleet.cell, fleet.provider, fleet.allowed_s, fleet.deadline_s)
    whole = fleet.warm_s + fleet.window_s
    planned = list(traffic(fleet.day, hour, 1 / fleet.cells, whole, fleet.seed))
    rows, counted = simulated(replace(setup, teams=4), planned, whole, fleet.warm_s, seed=fleet.seed)
    asked = list(zip([one for one in planned if one.at >= fleet.warm_s], rows, strict=True))
    return Hour(
        [row for one, row in asked if not one.batch], [row for one, row in asked if one.batch], counted,
        sum(fleet.provider.cost(one.prompt, one.output) for one, row in asked if row.good),
    )  # fmt: skip


def day_of(fleet: Fleet, router: str, hours: Sequence[Hour]) -> dict[str, Any]:
    """What a day comes to with one router. Pure."""
    rows, quick = [row for hour in hours for row in hour.rows], [row for hour in hours for row in hour.quick]
    maximum = fleet.capacity * fleet.day.output / fleet.cells
    found = figures([hour.quick for hour in hours], [hour.counted for hour in hours], maximum)
    firsts = [row.first for hour in hours for row in hour.slow if row.first is not None]
    hosted = sum(row.cost for row in rows) * fleet.of_an_hour
    gpus = fleet.gpus * fleet.gpu_hour_usd * HOURS
    instead = sum(hour.instead_usd for hour in hours) * fleet.of_an_hour
    return {
        "router": router, **found, "answered": _share([row.good for row in rows]),
        "simulated": len(rows), "stands_for": len(rows) * fleet.of_an_hour,
        "hosted_all": _hosted(rows), "in_time": _share([in_time(row) for row in quick]),
        "batch_first_p95_s": quantile(firsts, 0.95), "hosted_usd": hosted, "gpu_usd": gpus, "instead_usd": instead,
        "saved_usd": instead - hosted - gpus,
        "hours": [_shape(fleet, number, hour) for number, hour in enumerate(hours)],
    }  # fmt: skip


def _shape(fleet: Fleet, number: int, hour: Hour) -> dict[str, Any]:
    """What is drawn of one hour."""
    first = {
        name: of_kind([row for row in hour.quick if row.private == private], fleet.window_s)["first_s"]
        for name, private in (("public", False), ("private", True))
    }
    return {
        "asked": fleet.day.rate(number + 0.5) / fleet.capacity, "hosted": _hosted(hour.rows), "first_s": first,
        "hosted_usd": sum(row.cost for row in hour.rows) * fleet.of_an_hour,
        "answered": _share([row.good for row in hour.rows]),
    }  # fmt: skip


def _hosted(rows: Sequence[Row]) -> float:
    return _share([row.place == "hosted" for row in rows])


def _share(found: Sequence[bool]) -> float:
    return sum(found) / max(1, len(found))


def days_of(fleet: Fleet, jobs: int) -> list[dict[str, Any]]:
    """The day of each router, several hours at a time."""
    wanted = [(fleet, router, hour) for router in ROUTERS for hour in range(HOURS)]
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(hour_of, *zip(*wanted, strict=True), chunksize=4))
    else:
        found = [hour_of(*one) for one in wanted]
    return [day_of(fleet, router, found[n * HOURS : (n + 1) * HOURS]) for n, router in enumerate(ROUTERS)]
