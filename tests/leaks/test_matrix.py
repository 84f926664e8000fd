"""The leak matrix: every endpoint × every field that can carry text × every way out, and not a byte at the sink.

Real router and real door as processes, in a network whose only other host counts what comes (`network.py`); what is
tried is made from the code's own tables (`places.py`). One run serves all the tests of this file.
"""

from __future__ import annotations

import ast
import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from router.api.inference import ROUTES
from router.decision.dialects import LOCAL_ONLY
from router.decision.sensitivity import SPOKEN
from router.door.policy import PATHS
from router.scanner import reading
from serving import parameters
from tests.conftest import ROOT
from tests.leaks import network
from tests.leaks.models import REQUESTS, inner
from tests.leaks.places import SHAPES, all_fields, base, made, own_fields, places, sets_of
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
    """Not a byte, not a packet, not even a look for its address: neither to the provider nor to anywhere else.

    Counted by the sink, by who listens to the wire beside it, and by the kernel of this side.
    """
    assert report["leaked"] == []
    assert report["held"] == {"connections": 0, "bytes": 0, "packets": {}, "requests": 0, "sent_bytes": 0}
    if not report["alone"]:
        pytest.skip("one network namespace: the provider got nothing, and what went elsewhere is not seen")


def test_the_kernel_s_counter_counts(report: Report) -> None:
    """Where data may leave it counts all that the sink was sent, so the zero above is one."""
    if not report["alone"]:
        pytest.skip("one network namespace: there is no wire with a counter of its own")
    assert report["free"]["sent_bytes"] > report["free"]["bytes"] > 100_000


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


def triggers(sources: Mapping[str, str]) -> set[str]:
    """Every word for why another model came first, read off the code: without the name that follows some of them."""
    found: set[str] = set()
    for source in sources.values():
        for node in ast.walk(ast.parse(source)):
            given: list[ast.expr] = []
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if "trigger" in {getattr(one, "attr", getattr(one, "id", "")) for one in targets}:
                    given = [node.value]
            elif isinstance(node, ast.Call):
                given = [word.value for word in node.keywords if word.arg == "trigger"]
                given += node.args[:1] if getattr(node.func, "id", "") == "Wish" else []
            elif isinstance(node, ast.FunctionDef) and node.name == "_trigger":
                given = [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value is not None]
            for value in given:
                found |= _first_words(value)
    return found - {""}


def _first_words(value: ast.expr) -> set[str]:
    """The texts that an expression can give, up to a colon; not what it compares with."""
    if isinstance(value, ast.IfExp):
        return _first_words(value.body) | _first_words(value.orelse)
    if isinstance(value, ast.BoolOp):
        return set().union(*map(_first_words, value.values))
    if isinstance(value, ast.JoinedStr) and value.values:
        value = value.values[0]
    return (
        {value.value.partition(":")[0]} if isinstance(value, ast.Constant) and isinstance(value.value, str) else set()
    )


def test_every_trigger_that_the_code_knows_is_one_of_the_ways(report: Report) -> None:
    """A new reason to ask another model is a new way out: it fails here until a way of the matrix takes it."""
    known = triggers({str(path): path.read_text() for path in (ROOT / "router").rglob("*.py")})
    assert {"caller", "rule", "context", "overflow", "cascade"} <= known
    taken = {one["trigger"] for one in of(report, "free") if one["where"] == "hosted"}
    assert known - taken == set()


def test_a_new_trigger_would_be_noticed() -> None:
    new = {"a.py": "log.trigger = 'shadow' if a == 'b' else ''", "b.py": "x = Wish(f'judge:{name}', to)"}
    assert triggers(new) == {"shadow", "judge"}


@pytest.mark.parametrize("route", sorted(REQUESTS))
def test_every_field_inside_the_client_s_request_models_is_searched_or_opaque(route: str) -> None:
    """What stands inside messages, items, tools and schemas, by the official client's own models."""
    every = inner(route)
    assert len(every) > 100
    missed = []
    for one in every:
        body = {"model": "m", **one.body("heron")}
        seen = any("heron" in text.text for text in reading.texts(body)) or reading.read(body).opaque
        missed += [] if seen else [one.name]
    assert missed == []


def test_every_field_inside_a_chat_is_tried_on_the_wire() -> None:
    """Those of the client's models, and every word that the code itself knows for a part of a conversation."""
    tried: set[str] = set()
    for place in places("chat/completions"):
        tried |= keys(list(made("chat/completions", place, "heron", "m").values()))
    wanted = {step.field for one in inner("chat/completions") for step in one.steps[1:]}
    assert wanted - tried == set()
    assert (reading.SAID | reading.OF_PARTS | SPOKEN) - tried - all_fields() - OF_OTHERS == set()


OF_OTHERS = frozenset({"query", "summary", "thinking"})
"""Words of routes on which nothing leaves; `special` in places.py has them there."""


def keys(value: Any) -> set[str]:
    """Every name of a field below."""
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


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
