"""Many cases of one fault in one house, which takes longer to start than most cases take."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from tests.faults.conftest import FaultHouse


def each(cases: Mapping[str, Any] | Iterable[Any]) -> Callable[[Callable[..., Awaitable[None]]], Any]:
    """Run the test once for every case, in one house that its first `start` starts. A failure names its case.

    The invariants are held after each, so what is left over or lost names its case as well.

    A case is what follows the house in the test's arguments: a tuple of them, or the only one. Several `@each` above
    each other make every combination.
    """

    def wrap(test: Callable[..., Awaitable[None]]) -> Any:
        named = cases.items() if isinstance(cases, Mapping) else [(ascii(case)[:60], case) for case in cases]

        @functools.wraps(test)
        async def run(house: FaultHouse, *more: Any) -> None:
            house.key = functools.cache(house.key)  # type: ignore[method-assign]  # one for all cases
            for name, case in named:
                try:
                    await test(house, *(case if isinstance(case, tuple) else (case,)), *more)
                    await house.hold_invariants()
                except Exception as wrong:
                    raise AssertionError(f"case {name}: {wrong!r}") from wrong
                house.start = _already  # type: ignore[method-assign]

        del run.__wrapped__  # or pytest would ask for the cases as fixtures
        return run

    return wrap


async def _already(**_: Any) -> None: ...
