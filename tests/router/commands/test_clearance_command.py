"""`models clearance`: who may receive what, by whose word; what nobody said is unknown."""

from __future__ import annotations

from collections.abc import Callable

from serving.home import Home
from tests.fakes.command_line import Said

Say = Callable[..., Said]
SITE = """
providers:
  openai: {enabled: true, regions: [us], trains_on_data: false}
models:
  gpt-6.1-sol:
    clearance: internal
    approved: {by: Jo Doe, contract: DPA-17, regions: [us], until: 2999-01-31}
    retention_days: 0
    compliance: [soc2]
  gpt-6-luna:
    clearance: private
    approved: {by: Jo Doe, contract: DPA-9, until: 2020-01-31}
"""


def test_nothing_is_enabled_as_shipped(say: Say) -> None:
    assert "No hosted provider is enabled, so nothing leaves" in say("models", "clearance").out
    everything = say("models", "clearance", "--all", "--json").json()
    assert everything and not any(row["enabled"] for row in everything)
    assert {row["may_receive"] for row in everything} == {"public"}


def test_clearance_promises_and_what_is_unknown(say: Say, home: Home) -> None:
    (home.root / "headgate.yaml").write_text(SITE)
    rows = {row["model"]: row for row in say("models", "clearance", "--json").json()}
    assert {row["provider"] for row in rows.values()} == {"openai"}
    sol, luna = rows["gpt-6.1-sol"], rows["gpt-6-luna"]
    assert (sol["may_receive"], sol["regions"], sol["retention_days"]) == ("internal", ["us"], 0)
    assert (sol["trains_on_data"], sol["compliance"]) == (False, ["soc2"])
    assert (luna["may_receive"], luna["retention_days"]) == ("public", None)  # the approval has ended
    told = " ".join(say("models", "clearance").out.split())
    assert "2999-01-31" in told and "unknown" in told and "2020-01-31" in told
