"""The programs from end to end against a real Headgate, so short that no figure means anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import goals, nginx, overflow, overhead, routers, simulate, soak

TINY = overhead.Plan(
    rounds=1, seconds=1.0, streams=1, first_rounds=1, hold_s=0.1, runs=1, run_s=1.0, overload_s=2.0
)  # fmt: skip

pytestmark = pytest.mark.long


def written(folder: Path) -> Any:
    """The one result in the folder, which has its picture beside it."""
    (path,) = folder.glob("*.json")
    assert path.with_suffix(".png").stat().st_size > 10_000
    return json.loads(path.read_text())


@pytest.mark.skipif(nginx.program() is None, reason="nginx is not installed")
def test_overhead_measures_everything_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overhead, "QUICK", TINY)
    monkeypatch.setattr(overhead, "PROFILE_S", 1.0)
    given = ["--quick", "--overload", "--chunks=10", f"--peers-folder={tmp_path / 'none'}", f"--out={tmp_path}"]
    assert overhead.main(given) == 0, capsys.readouterr().err
    found = written(tmp_path)
    assert found["absent"].keys() == {"smg", "litellm"}
    assert all(entry["errors"] == 0 for entry in [*found["figures"], *found["first_token"]])
    assert [m["streams"] for m in found["memory"]] == [1000] * 3
    assert "router, searching" in {entry["target"] for entry in found["figures"]}
    assert all(entry["reached_p50_ms"] and entry["back_p50_ms"] for entry in found["first_token"])
    assert found["accounted_for"] >= found["answered_through_headgate"] + found["held_open"]
    unknown = [goal.name for goal in goals.goals(found) if goal.verdict == "not measured"]
    assert len(unknown) == 3 and all("smg" in name or "vLLM" in name for name in unknown), unknown


def test_soak_accounts_for_every_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soak.main(["--minutes=0.1", "--rate=50", "--every=0.5", f"--out={tmp_path}"])
    found = written(tmp_path)
    assert found["callers"]["sent"] == 300 and found["callers"]["failed"] == 0
    assert found["ledger"]["opened"] == found["ledger"]["closed"] > 0
    assert not [said for said in found["leaks"] if "requests" in said], found["leaks"]
    assert found["samples"][-1]["open"] == 0 and found["samples"][-1]["tasks"]


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_overflow_measures_what_the_simulation_is_held_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Private requests that cannot all be served, and not a byte of them at the provider."""
    monkeypatch.setattr(overflow, "QUICK", overflow.Plan(1, 4.0, loads=(6.0,), curve_s=1.0))
    monkeypatch.setattr(overflow, "ROUTERS", (routers.FIXED, routers.PREDICTED))
    assert overflow.main(["--quick", f"--out={tmp_path}"]) == 0, capsys.readouterr().err
    found = written(tmp_path)
    for step in found["steps"]:
        assert step["asked"] > 10 and step["failed"] == 0 and step["provider_requests"] > 0, step
        assert step["private_bytes_out"] == 0 and step["hosted"] > 0 and step["cost_usd"] > 0
    (path,) = tmp_path.glob("*.json")
    assert simulate.main([f"--check={path}"]) == 0
