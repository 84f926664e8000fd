"""The GPUs as they are published: whose memory it is, and which GPU an error has taken out."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import energy, processes
from serving.gpus import Gpu, Readings
from serving.monitor import Monitor, shared, whose
from serving.xids import Xids

OURS = {41: "demo", 42: "demo", 43: "small"}


class Reported(Xids):
    """Errors as a test reports them."""

    def __init__(self, fatal: dict[str, int], contained: dict[str, int] | None = None) -> None:
        super().__init__()
        self.told, self.told_too = fatal, contained or {}

    def start(self) -> None:
        pass

    def fatal(self) -> dict[str, int]:
        return dict(self.told)

    def contained(self) -> dict[str, int]:
        return dict(self.told_too)


def card(*processes: tuple[int, float | None], uuid: str = "GPU-a", **more: bool) -> Gpu:
    return Gpu(uuid, "H", 0, processes=processes, **more)  # type: ignore[arg-type]


def test_memory_is_told_apart_into_ours_by_instance_and_that_of_others() -> None:
    gpu = shared(card((41, 20.0), (42, 2.0), (43, 4.0), (900, 7.0), (901, 1.5)), OURS)
    assert gpu.held == (("demo", 22.0), ("small", 4.0)) and gpu.others_gb == 8.5


def test_what_a_process_does_not_say_is_unknown_and_not_nothing() -> None:
    assert shared(card((41, 20.0), (42, None)), OURS).held == (("demo", None),)
    assert shared(card((41, 20.0), (900, None), (901, 2.0)), OURS).others_gb is None
    assert shared(card(listed=False), OURS).others_gb is None
    assert shared(card(), OURS).others_gb == 0


def test_the_ids_of_another_machine_are_nobody_known(tmp_path: Path) -> None:
    """In a container the driver names the machine's ids, and the same number here is somebody else."""
    assert whose("i", tmp_path) is None
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "comm").write_text("sh\n")
    assert whose("i", tmp_path) is None
    gpu = shared(card((41, 20.0)), None)
    assert gpu.held == () and gpu.others_gb is None
    (tmp_path / "2" / "comm").write_text("kthreadd\n")
    assert whose("i", tmp_path) == {}


@pytest.fixture
def engine() -> Iterator[subprocess.Popen[bytes]]:
    """A process that carries the marks of an instance, with a child of its own."""
    marks = {processes.INSTALLATION: "of this test", processes.INSTANCE: "demo"}
    child = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    started = subprocess.Popen([sys.executable, "-c", child], env=os.environ | marks, start_new_session=True)
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, 9)
        started.wait()


def test_an_engines_whole_process_tree_is_its_own(engine: subprocess.Popen[bytes]) -> None:
    """vLLM is an API server, an engine core and workers; the memory is held by the last."""
    if whose("of this test") is None:
        pytest.skip("the process ids seen here are not the machine's")
    end = time.monotonic() + 20
    while len(found := whose("of this test") or {}) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert set(found.values()) == {"demo"}
    held = card(*((pid, 10.0) for pid in found), (1, 3.0))
    made = Monitor("of this test", read=lambda: Readings((held,), "", 1.0), events=Reported({}))
    (gpu,) = made().gpus
    assert gpu.held == (("demo", 10.0 * len(found)),) and gpu.others_gb == 3.0


def test_a_fatal_error_takes_the_gpu_out_by_its_name_for_good() -> None:
    """The one in the way is named: a lost GPU gives no name of its own, and what it was called before counts."""
    looks = iter([
        Readings((card(), card(uuid="GPU-b")), "", 1.0),
        Readings((Gpu("unknown-0", "unknown", 0, fault="GPU is lost"), Gpu("GPU-b", "H", 1)), "", 2.0),
        Readings((card(), Gpu("GPU-b", "H", 1)), "", 3.0),
    ])  # fmt: skip
    events = Reported({})
    monitor = Monitor("none", read=lambda: next(looks), events=events)
    assert [g.fault for g in monitor().gpus] == ["", ""]
    events.told = {"GPU-a": 79}
    assert [(g.uuid, g.xid, g.fault) for g in monitor().gpus] == [("GPU-a", 79, "GPU is lost"), ("GPU-b", None, "")]
    # It answers again, and its error still stands.
    assert [(g.xid, g.fault) for g in monitor().gpus] == [(79, "XID 79: it has fallen off the bus"), (None, "")]


@pytest.mark.parametrize("reported", [{}, {"GPU-a": 79}])
def test_a_fault_holds_while_the_driver_answers_nothing(reported: dict[str, int]) -> None:
    """Else the engine there would be started again, on a GPU that nobody has called well."""
    lost = Gpu("unknown-0", "unknown", 0, fault="" if reported else "GPU is lost")
    silence = Readings(note="the NVIDIA driver does not answer")
    looks = iter([Readings((card(), card(uuid="GPU-b"))), Readings((lost, card(uuid="GPU-b"))), silence, silence,
                  Readings((card(), card(uuid="GPU-b")))])  # fmt: skip
    events = Reported({})
    monitor = Monitor("none", read=lambda: next(looks), events=events)
    monitor()
    monitor()
    events.told = reported  # it may be heard when the driver answers nothing any more
    for _ in range(2):
        (gpu,) = monitor().gpus
        assert gpu.uuid == "GPU-a" and ("XID 79" if reported else "GPU is lost") in gpu.fault
    again = monitor().gpus
    assert [(g.uuid, bool(g.fault)) for g in again] == [("GPU-a", bool(reported)), ("GPU-b", False)]


def test_a_contained_error_is_told_and_takes_nothing_out() -> None:
    seen = Readings((card(), card(uuid="GPU-b")), "", 1.0)
    first, other = Monitor("none", read=lambda: seen, events=Reported({}, {"GPU-a": 94}))().gpus
    assert first.warnings == ("XID 94: an error in its memory was met by one program alone",)
    assert (first.fault, first.xid, other.warnings) == ("", None, ())


def test_a_driver_that_is_away_for_a_moment_loses_no_energy_and_accuses_nobody() -> None:
    def at(moment: float, count: int) -> Readings:
        return Readings((Gpu("GPU-a", "H", 0, meter=energy.first(moment, count, None)),), "", moment)

    looks = iter([at(1, 1_000_000), Readings(note="it does not answer"), at(3, 1_500_000)])
    monitor = Monitor("none", read=lambda: next(looks), events=Reported({}))
    assert monitor().gpus[0].energy_j == 0
    assert monitor().gpus == ()
    assert monitor().gpus[0].energy_j == 500
