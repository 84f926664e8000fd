"""The groups of models that run by demand: hears what requests wait for, and gives each place to whose turn it is.

`swapping.py` decides; this looks every moment, tells the models' own tasks, and knows nothing of how one comes or goes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from serving import swapping
from serving.stay import Stay

KEPT_S = 300.0
"""A request that is not made again counts so long beyond the time that was named for it."""
LOOK_S = 0.25
"""Between two looks; a request that comes is looked at once."""


class Sharing:
    """All groups of this host. `groups`: of each the stays by the model's name, first the one that runs first."""

    def __init__(self, groups: Sequence[Mapping[str, Stay]], min_stay_s: float, say: Callable[[str], None]) -> None:
        self._groups, self._min_stay_s, self._say = groups, min_stay_s, say
        self._stays = {name: stay for group in groups for name, stay in group.items()}
        self._asked = asyncio.Event()

    def ask(self, model: str) -> bool:
        """A request waits for `model`; False where that is none of those that run by demand."""
        if (stay := self._stays.get(model)) is None:
            return False
        now = time.monotonic()
        stay.ask(now, now + (self.ready_in_s(model) or 0.0) + KEPT_S)
        self._asked.set()
        return True

    def ready_in_s(self, model: str) -> float | None:
        """Seconds until `model` is likely to answer; None where that is unknown, or it runs always."""
        for group in self._groups:
            if model in group:
                return swapping.ready_in(model, _members(group), time.monotonic(), self._min_stay_s)
        return None

    async def run(self) -> None:
        """Share the places out, for ever."""
        while True:
            for group in self._groups:
                self._look(group)
            self._asked.clear()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._asked.wait()
            except TimeoutError:
                pass

    def _look(self, group: Mapping[str, Stay]) -> None:
        step = swapping.move(_members(group), time.monotonic(), self._min_stay_s)
        if step is None:
            return
        self._say(f"{step.name}: {'wakes' if step.to == 'wake' else 'rests'}: {step.why}")
        if step.to == "wake":
            group[step.name].wake()
        else:
            group[step.name].rest(step.why)


def _members(group: Mapping[str, Stay]) -> list[swapping.Member]:
    return [stay.member(name) for name, stay in group.items()]
