"""Tries mutants against tests, each in a fork of one process that has imported and collected everything already.

`python -m tests.mutation.trial REPORT [FILE…]` writes, as JSON, the mutants that no test noticed. A mutant is laid over
the real module in place: its functions get the wrong code, so whoever imported them before has it as well.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.mutation.gate import FILES, TESTS
from tests.mutation.mutants import Mutant, mutants

ROOT = Path(__file__).parent.parent.parent
AT_ONCE = 2
LONGEST_S = 30
"""A mutant that makes a test run for so long has been noticed."""


def lay_over(module: types.ModuleType, source: str) -> None:
    """Give the module, and everybody who imported from it, the wrong version."""
    wrong: dict[str, Any] = {"__name__": module.__name__, "__file__": module.__file__}
    made = types.ModuleType(module.__name__)
    made.__dict__.update(wrong)
    sys.modules[module.__name__], real = made, sys.modules[module.__name__]
    try:
        exec(compile(source, str(module.__file__), "exec"), made.__dict__)
    finally:
        sys.modules[module.__name__] = real
    for name, new in made.__dict__.items():
        old = module.__dict__.get(name)
        if isinstance(old, types.FunctionType) and isinstance(new, types.FunctionType):
            _take(old, new)
        elif isinstance(old, type) and isinstance(new, type) and old.__module__ == module.__name__:
            _take_class(old, new)
        elif not name.startswith("__") and old is not None and not isinstance(old, type | types.ModuleType):
            _everywhere(name, old, new)


def _take(old: types.FunctionType, new: types.FunctionType) -> None:
    if len(old.__code__.co_freevars) == len(new.__code__.co_freevars):
        old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__


def _take_class(old: type, new: type) -> None:
    for name, one in vars(new).items():
        had = vars(old).get(name)
        if isinstance(had, staticmethod) and isinstance(one, staticmethod):  # how a named tuple is made
            had, one = had.__func__, one.__func__
        if isinstance(had, types.FunctionType) and isinstance(one, types.FunctionType):
            _take(had, one)
        elif isinstance(had, property) and isinstance(one, property) and had.fget and one.fget:
            _take(had.fget, one.fget)  # type: ignore[arg-type]


def _everywhere(name: str, old: Any, new: Any) -> None:
    """Change a constant in its module and wherever it was imported."""
    for module in list(sys.modules.values()):
        space = getattr(module, "__dict__", {})
        if space.get(name) is old and str(space.get("__name__", "")).startswith(("router", "serving")):
            space[name] = new


class Wrong(NamedTuple):
    """A mutant, the module it is laid over, and the tests that are to notice."""

    module: str
    mutant: Mutant
    tests: tuple[str, ...]


class Trial:
    """The plugin: instead of running the tests it runs them once in a fork for each mutant."""

    def __init__(self, wrong: list[Wrong]) -> None:
        self.wrong, self.unnoticed = wrong, list[str]()
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        assert self._passes(session, None), "the tests must pass as things are"
        running: dict[int, tuple[str, float]] = {}
        for one in self.wrong:
            if len(running) >= AT_ONCE:
                self._reap(running)
            running[self._fork(session, one)] = one.mutant.name, time.monotonic()
        while running:
            self._reap(running)
        return True

    def _fork(self, session: pytest.Session, wrong: Wrong) -> int:
        sys.stdout.flush()
        if pid := os.fork():
            return pid
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            os._exit(0 if self._passes(session, wrong) else 1)
        except BaseException:
            os._exit(1)

    def _reap(self, running: dict[int, tuple[str, float]]) -> None:
        """Wait until one of them ends; who takes too long is ended here, for a test's own timeout takes alarms away."""
        while True:
            for pid, (name, since) in list(running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if not ended and time.monotonic() - since > LONGEST_S:
                    os.kill(pid, signal.SIGKILL)
                if ended:
                    del running[pid]
                    self.unnoticed += [name] if status == 0 else []
                    return
            time.sleep(0.005)

    def _passes(self, session: pytest.Session, wrong: Wrong | None) -> bool:
        self.failed = False
        if wrong is not None:
            lay_over(importlib.import_module(wrong.module), wrong.mutant.make())
        items = [item for item in session.items if wrong is None or item.nodeid.startswith(wrong.tests)]
        assert items, "nobody is to notice"
        for number, item in enumerate(items):
            after = items[number + 1] if number + 1 < len(items) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if self.failed:
                return False
        return True


def main() -> int:
    """Try every mutant of the gate. Prints {"tried": N, "unnoticed": [names]}."""
    report = Path(sys.argv[1])
    wrong = [
        Wrong(path.removesuffix(".py").replace("/", "."), mutant, part.tests)
        for path, part in FILES.items()
        for mutant in mutants((ROOT / path).read_text(), path, part.only, part.spoken)
        if not sys.argv[2:] or path in sys.argv[2:]
    ]
    trial = Trial(wrong)
    given = ["-qq", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not long", "--tb=no"]
    code = pytest.main([*given, *[str(ROOT / one) for one in TESTS]], plugins=[trial])
    report.write_text(json.dumps({"tried": len(wrong), "unnoticed": trial.unnoticed, "code": int(code)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
