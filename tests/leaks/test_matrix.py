"""The leak matrix: every endpoint × every field that can carry text × every way out, and not a byte at the sink.

Real router and real door as processes, in a network whose only other host counts what comes (`network.py`); what is
tried is made from the code's own tables (`places.py`). One run serves all the tests of this file.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.api.inference import ROUTES
from router.decision.dialects import LOCAL_ONLY
from router.door.policy import PATHS
from router.scanner import reading
from serving import parameters
from tests.conftest import ROOT
from tests.leaks import network
from tests.leaks.places import SHAPES, all_fields, base, own_fields, places, sets_of
from tests.leaks.trying import WAYS, brief

pytestmark = [pytest.mark.xdist_group("leaks"), pytest.mark.timeout(300)]

Report = dict[str, Any]


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    """What came of everything; the building stands in a network of its own where the kernel allows it."""
    with tempfile.TemporaryDirectory(prefix="hg-") as folder:
        own = network.alone()
        start = [*own, *network.python("-m", "tests.leaks.building", folder), *(["alone"] if own else [])]
        run = subprocess.run(start, cwd=ROOT, env=network.environment(), capture_output=True, text=True, timeout=280)
        logs = [file.read_text(errors="replace")[-1500:] for file in Path(folder).glob("home/logs/*")]
        assert run.returncode == 0, "\n".join([run.stderr[-3000:], *logs])
        found = json.loads((Path(folder) / "report.json").read_text())
    kind = f"in two network namespaces ({' '.join(own)})" if own else "in ONE network namespace: none of its own here"
    made = f"{len(found['tries'])} requests and {len(found['door'])} forged permits"
    print(f"{made} {kind}, {found['seconds']['all']:.0f} s")
    yield found


def of(report: Report, kind: str) -> list[dict[str, Any]]:
    return [one for one in report["tries"] if one["kind"] == kind]


# ---- nothing left


def test_nothing_came_to_the_only_other_host(report: Report) -> None:
    """Not a byte, not a packet, not even a look for its address: neither to the provider nor to anywhere else."""
    assert report["leaked"] == []
    assert report["held"] == {"connections": 0, "bytes": 0, "packets": {}, "requests": 0,
                              "sent_bytes": report["held"]["sent_bytes"]}  # fmt: skip


def test_every_one_was_answered_here_or_refused(report: Report) -> None:
    left = [one for kind in ("private", "found", "opaque") for one in of(report, kind) if one["where"] == "hosted"]
    assert left == []
    broken = Counter((one["status"], one["code"]) for one in report["tries"] if one["status"] == 500)
    assert not broken, "a request that breaks the router was not held back, it was lost"


def test_a_router_that_lies_gets_nothing_past_the_door(report: Report) -> None:
    """Its permits are well sealed and claim that everything is public; the door finds for itself what is not."""
    assert {(one["door"], one["status"] // 100) for one in report["door"]} <= {("refused", 4)}
    codes = Counter(one["code"] for one in report["door"] if one["kind"] == "found")
    held = codes["data_class_not_cleared"] + codes["not_scannable"]
    assert held > 0.8 * codes.total(), f"most must be refused for what they hold: {codes}"


def test_what_left_went_to_the_provider_alone(report: Report) -> None:
    if not report["alone"]:
        pytest.skip("one network namespace: packets to elsewhere are not seen")
    assert set(report["free"]["packets"]) == {f"tcp {network.SINK}:443"}


# ---- the ways are open for what may go


def test_what_may_leave_does(report: Report) -> None:
    """The positive control: the sink works, and each way and field leads there where nothing holds it back."""
    assert report["free"]["requests"] > 500
    shut = [one["way"] for one in of(report, "free") if one["place"] == "-" and one["where"] != "hosted"]
    named = {(one["route"], one["way"]) for one in of(report, "free") if one["place"] == "-"}
    chat = {way for route, way in named if route == "chat/completions"}
    assert {way.name for way in WAYS[1:]} <= chat
    reached = {one["way"] for one in of(report, "free") if one["where"] == "hosted"}
    assert {way.name for way in WAYS if not way.local} <= reached, shut


def test_each_field_that_leaves_when_harmless_is_one_that_is_searched(report: Report) -> None:
    arrived = set(report["arrived"])
    free = {(o["route"], o["place"]) for o in of(report, "free") if o["text"] in arrived}
    found = {(o["route"], o["place"]): o for o in of(report, "found") if o["way"] == "primary"}
    assert len(free) > 400
    unsearched = [(at, found[at]["code"]) for at in sorted(free) if at in found
                  and found[at]["code"] not in ("data_class_not_cleared", "not_scannable")]  # fmt: skip
    assert unsearched == []


def test_no_header_and_no_query_of_a_caller_leaves(report: Report) -> None:
    assert report["in_heads"] == []
    about = [one for one in of(report, "free") if one["way"] == "headers and query"]
    assert [one["where"] for one in about] == ["hosted"]
    assert not {one["text"] for one in about} & set(report["arrived"])


# ---- nothing was written or said


def test_no_text_is_in_any_file_log_metric_or_page(report: Report) -> None:
    """Both processes log at DEBUG; ledger, book, logs, metrics, status, dry runs: none of them holds any text."""
    assert report["written"] == []


def test_no_refusal_repeats_what_was_found(report: Report) -> None:
    assert report["returned"] == []


# ---- nothing was forgotten


@pytest.mark.parametrize("route", sorted(ROUTES.values()))
def test_every_field_of_every_endpoint_was_tried(report: Report, route: str) -> None:
    tried: dict[str, set[str]] = {}
    for one in report["tries"]:
        if one["route"] == route:
            tried.setdefault(one["field"], set()).add(one["kind"])
    assert all_fields() - {"model"} - {field for field, kinds in tried.items() if "found" in kinds} == set()
    assert own_fields(route) - {"model"} - {f for f, kinds in tried.items() if "private" in kinds} == set()
    for way in WAYS if route not in LOCAL_ONLY else WAYS[:1]:
        there = {one["field"] for one in report["tries"] if (one["route"], one["way"]) == (route, way.name)}
        assert own_fields(route) - {"model"} <= there, way.name


def test_every_set_of_names_in_the_tables_of_fields_is_in_the_matrix() -> None:
    for name, names in sets_of(parameters):
        assert names <= all_fields() | set(ROUTES.values()) | parameters.REFUSED_TEMPLATE_KEYS, name
    assert len(all_fields()) > 120


def test_every_endpoint_has_its_places() -> None:
    for route in ROUTES.values():
        assert base(route), route
        here = places(route)
        assert len({place.name for place in here}) == len(here), "two places of one name"
        assert {place.field for place in brief(route)} == own_fields(route) - {"model"}
        for field in own_fields(route) - {"model"}:
            assert {f"{field} {shape}" for shape in SHAPES} <= {place.name for place in here}
    assert set(PATHS) == set(ROUTES.values()) - LOCAL_ONLY


def test_every_readable_part_and_every_opaque_key_is_tried(report: Report) -> None:
    tried = {one["place"] for one in report["tries"]}
    assert {f"messages, part {kind}" for kind in reading.READABLE_PARTS} <= tried
    opaque = [one for one in of(report, "opaque") if one["route"] == "chat/completions"]
    keys = reading.OPAQUE_KEYS | reading.OPAQUE_FIELDS | reading.REFERENCES
    assert len({one["place"] for one in opaque}) >= len(keys)


def test_it_ends_within_a_minute_or_so(report: Report) -> None:
    print(f"held back after {report['seconds']['held back']:.1f} s, all after {report['seconds']['all']:.1f} s")
    assert report["seconds"]["all"] < 240
