"""Errors that the driver reports as they happen: which take a GPU out, and that none is missed or made up."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from serving import xids
from tests.fakes import nvml

LISTEN = """
import os, sys, time
from serving.xids import Xids
script, *said = sys.argv[1:]
events = Xids(again_s=0.02, wait_ms=20)
events.start()
for words in said:
    with open(script + ".new", "w") as file:
        file.write(words)
    os.replace(script + ".new", script)
    end = time.monotonic() + 0.3
    before = events.fatal(), events.contained()
    while time.monotonic() < end and (events.fatal(), events.contained()) == before:
        time.sleep(0.01)
    print({**events.fatal(), **{uuid: -xid for uuid, xid in events.contained().items()}}, flush=True)
events.stop()
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.library(tmp_path_factory.mktemp("nvml"))


def listen(driver: Path, folder: Path, *said: str) -> list[str]:
    """What is known of errors after each of these is said by the driver; those that were contained with a minus."""
    script = folder / "script"
    script.write_text(said[0])
    environ = {**os.environ, "LD_LIBRARY_PATH": str(driver), "NVML_FILE": str(script)}
    environ.pop("NVML", None)
    done = subprocess.run(
        [sys.executable, "-c", LISTEN, str(script), *said], env=environ, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_fatal_error_is_kept_by_the_gpu_it_befell(driver: Path, tmp_path: Path) -> None:
    found = listen(driver, tmp_path, "xid=79 xid_on=1", "xid=48 xid_on=0", "cool")
    assert found == ["{'GPU-1': 79}", "{'GPU-1': 79, 'GPU-0': 48}", "{'GPU-1': 79, 'GPU-0': 48}"]


def test_an_error_of_one_program_and_one_that_was_contained_take_no_gpu_out(driver: Path, tmp_path: Path) -> None:
    found = listen(driver, tmp_path, "xid=13", "xid=31", "xid=43", "xid=63", "xid=94")
    assert found == ["{}", "{}", "{}", "{'GPU-0': -63}", "{'GPU-0': -94}"]


def test_it_listens_again_once_the_driver_answers_again(driver: Path, tmp_path: Path) -> None:
    found = listen(driver, tmp_path, "nvmlEventSetWait_v2=999 xid=79", "refused xid=79", "xid=79 xid_on=1")
    assert found == ["{}", "{}", "{'GPU-1': 79}"]


@pytest.mark.parametrize("said", ["nvmlDeviceRegisterEvents=3 xid=79", "none xid=79", "nvmlEventSetCreate=13 xid=79"])
def test_a_driver_that_reports_none_is_no_trouble(driver: Path, tmp_path: Path, said: str) -> None:
    assert listen(driver, tmp_path, said) == ["{}"]


def test_a_driver_that_counts_billions_of_gpus_is_listened_to_all_the_same(driver: Path, tmp_path: Path) -> None:
    """It would be asked for each of them, for hours."""
    assert listen(driver, tmp_path, "countless xid=79 xid_on=1") == ["{'GPU-1': 79}"]


def test_every_fatal_one_has_its_reason_and_contained_ones_are_none() -> None:
    assert {48, 64, 74, 79, 95, 119, 120, 140} <= set(xids.FATAL)
    assert not {13, 31, 43, 45, 63, 92, 94, 154} & set(xids.FATAL)
    assert {63, 94} <= set(xids.CONTAINED) and not set(xids.CONTAINED) & set(xids.FATAL)
    assert xids.words(79) == "XID 79: it has fallen off the bus"
    assert all(why and not why.endswith(".") for why in xids.FATAL.values())


def test_an_answer_that_cannot_be_does_not_end_the_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    events, heard = xids.Xids(again_s=0.01), threading.Semaphore(0)

    def odd() -> None:
        heard.release()
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "a name that is none")

    monkeypatch.setattr(events, "_listen", odd)
    events.start()
    assert heard.acquire(timeout=10) and heard.acquire(timeout=10)
    events.stop()
