"""Every case of the fault catalogue in these categories has a test that bears its id, or a reason why it has none.

The catalogue lies beside the checkout where there is one; the ids are listed here, so that the table can be read and
held against the tests without it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

HERE = Path(__file__).parent
CATALOGUE = ROOT.parent / "shared" / "faults.yaml"
CATEGORIES = (
    "upstream",
    "upstream-protocol",
    "sse",
    "client",
    "http",
    "json",
    "overload",
    "auth",
    "ssrf",
    "media",
    "privacy",
    "process",
    "gpu",
    "host",
)

COVERED: dict[str, tuple[str, ...]] = {
    "test_upstream.py": (
        "UP-001", "UP-002", "UP-003", "UP-004", "UP-005", "UP-006", "UP-007", "UP-009", "UP-010", "UP-011", "UP-012",
        "UP-013", "UP-014", "UP-016", "UP-017", "UP-018", "UP-019", "UP-021", "UP-022", "UP-025",
    ),
    "test_upstream_protocol.py": (
        "PR-001", "PR-002", "PR-003", "PR-004", "PR-005", "PR-008", "PR-010", "PR-011", "PR-013", "PR-014", "PR-016",
        "PR-017", "PR-018", "PR-020", "PR-021", "PR-022", "PR-023", "PR-024", "PR-025",
    ),
    "test_sse.py": (
        "SS-001", "SS-002", "SS-003", "SS-004", "SS-005", "SS-006", "SS-008", "SS-009", "SS-010", "SS-011", "SS-014",
        "SS-015",
    ),
    "test_client.py": (
        "CL-001", "CL-003", "CL-004", "CL-005", "CL-006", "CL-008", "CL-009", "CL-011", "CL-012", "CL-013",
    ),
    "test_http.py": (
        "HT-001", "HT-002", "HT-003", "HT-004", "HT-005", "HT-007", "HT-008", "HT-009", "HT-010", "HT-012", "HT-014",
        "HT-015", "HT-016",
    ),
    "test_json.py": (
        "JS-002", "JS-003", "JS-005", "JS-006", "JS-007", "JS-011", "JS-012", "JS-013", "JS-016", "JS-017", "JS-018",
        "JS-020", "JS-021", "JS-024", "JS-025",
    ),
    "test_overload.py": ("PX-028", "PX-029"),
    "test_process.py": ("PX-004", "PX-005", "PX-013"),
    "test_gpu.py": ("PX-015", "PX-016", "PX-017", "PX-018", "PX-019", "PX-020", "PX-021", "PX-024"),
    "test_host.py": ("PX-025", "PX-026"),
    "test_privacy.py": (
        "PG-003", "PG-005", "PG-006", "PG-007", "PG-008", "PG-009", "PG-011", "PG-013", "PG-014", "PG-018", "PG-019",
        "PG-020", "PG-021", "PG-023", "PG-026", "PG-027", "PG-028", "PG-029", "PG-032", "PG-033", "PG-034", "PG-035",
    ),
    "test_ssrf.py": ("SR-001", "SR-002", "SR-004", "SR-005", "SR-006", "SR-007", "SR-008"),
    "test_media.py": ("SR-009", "SR-010", "SR-011"),
    "test_auth.py": ("AU-001", "AU-006", "AU-007", "AU-008", "AU-009", "AU-010", "AU-012", "AU-013"),
}  # fmt: skip
"""The file → the ids whose tests stand there: `test_up_001_…` is a test of UP-001."""

ELSEWHERE: dict[str, dict[str, str]] = {
    "PX-001": {"tests/router/test_workers.py": "test_bu_001_bu_002_px_001_a_budget_is_exact_over_workers"},
    "PX-002": {
        "tests/router/test_workers.py": "test_a_stop_lets_answers_end_and_leaves_no_process",
        "tests/router/test_app.py": "test_what_is_open_when_the_time_to_stop_is_over_is_told_and_on_record",
    },
    "PX-008": {
        "tests/leaks/test_doubles.py": "test_a_clock_that_jumps",
        "tests/router/test_clock.py": "test_a_clock_that_is_set_back_while_it_runs_does_not_take_it_back",
        "tests/router/ledger/test_history.py": "test_a_jump_of_the_clock_opens_nothing",
    },
    "PX-009": {
        "tests/router/test_keeper.py": "test_a_mistake_in_the_file_later_does_not_stop_what_runs",
        "tests/router/commands/test_run.py": "test_what_is_refused_starts_nothing",
    },
    "PX-012": {
        "tests/router/upstream/test_attempts.py": "test_a_key_file_is_used_and_a_rotated_one_at_once",
        "tests/router/door/test_sending.py": "test_a_key_file_wins_and_a_rotated_key_is_used_at_once",
        "tests/serving/test_supervisor.py": "test_a_wrong_key_is_named_and_the_right_one_is_read_anew",
    },
    "PX-014": {
        "tests/benchmarks/test_smoke.py": "test_soak_accounts_for_every_request",
        "tests/benchmarks/test_soak.py": "test_what_grows_under_load_is_a_leak",
    },
    "PX-027": {"tests/router/api/test_ids.py": "test_a_forked_process_draws_its_own"},
}  # fmt: skip
"""The id → by file, how the names of those tests of it begin that stand with the parts they are about, not here."""

NOT_RUN: dict[str, str] = {
    "PX-011": "nothing is reloaded while it runs: each process reads the file once; door and router compare versions",
    "AU-004": "JSON web tokens are not offered: callers have keys of Headgate's own, whose whole text is compared",
    "AU-005": "JSON web tokens are not offered: there is no algorithm to choose and no key server that could be down",
    "UP-023": "loss and jitter need the kernel's netem (module sch_netem) and the right to set it on an interface",
    "PG-025": "no classifier, judge or summariser is asked anywhere, so none can be set to a hosted model",
    "PG-031": "nothing is redacted: what holds too much stays here as it is, and no placeholder is put in its place",
}
"""The id → why there is no test of it."""

IN_PART: dict[str, str] = {
    "AU-007": "over the network the admin API only reads, so no field of it has a role; there is no role for a team",
    "AU-009": "a key has 256 bits, so guessing is hopeless at any rate; a throttle by address is a proxy's to set",
    "AU-010": "known keys go on for as long as the table is lost, and not only for some minutes: nothing of it leaves",
    "AU-013": "no filter removes anything: the program logs no text in the first place, which is what the test holds",
    "CL-001": "50 ms are held by the median of forty; the engine's second is in tests/test_one_request.py (`engine`)",
    "CL-006": "60 readers that stop, a thousand of them among the long tests; one of them is slow and reads on",
    "CL-012": "1.0 for what is final; where waiting can help each call asks 3 times, each after the wait it is told",
    "PR-004": "an engine without room is asked again until queue_wait_s is over: it has done nothing, so it is no try",
    "UP-001": "no probe in the background: after its rest one request finds out, and serving looks at what it started",
    "UP-012": "no power is cut: the kernel is told to notice it within 20 s, and no dead socket is used again",
    "UP-021": "the head start is 250 ms; the test allows 500 between the two, since a busy machine is late as well",
    "PX-001": "200 requests over three workers, not 100 streams; what the dead one had open is charged at its hold",
    "PX-002": "a router that stops accepts no more, so nobody asks for its readiness; the keeper allows it 30 s",
    "PX-004": "`/ready` says 503 once the loop goes on; while it stands still nothing answers, and the keeper ends it",
    "PX-005": "none are kept back for audit and admin: theirs are open from the start, and connections are capped",
    "PX-009": "nothing is reloaded while it runs: a changed file counts at the next start, which refuses a broken one",
    "PX-012": "a rotated key is used at once and not verified first; one that cannot be read is said and not used",
    "PX-013": "40 starts and not 1000; that a container has an init is `init: true` in deploy/compose.yaml",
    "PX-014": "minutes and not a day: benchmarks/soak.py runs as long as it is told; tests hold what it measures by",
    "PX-018": "63 and 94 are contained and only told; the driver is simulated: tests/serving/test_simulated_gpu.py",
    "PX-019": "the engine's answer is scripted: there is no GPU here whose memory could run out",
    "PX-020": "by worker, before the first byte, and only where serving says that the process is another by now",
    "PX-024": "no network policy: an engine listens on a Unix socket in a folder that its owner alone may enter",
    "PX-025": "the half speed is UP-013's, in test_upstream.py; here what a reading says of the GPU's clocks",
    "PX-026": "what a full disk means for the ledger is in tests/router/ledger and tests/leaks",
    "PX-027": "a fork, which is what can be had here; no snapshot of a machine is restored",
    "PX-028": "a second here, ten in benchmarks/overhead.py, no minutes; priorities: tests/test_overflow.py",
    "PX-029": "the ramp, the one request that goes ahead and the dropping of those that left; the queue is no LIFO",
    "PR-024": "the alias and the true model stand in the header and the ledger; the body passes unchanged",
    "SR-002": "one code for every address, `media_url_not_allowed`, and `invalid_media` for data that is no medium",
    "SR-006": "no API sets a provider: what is tested is that the file's address is held to, and that a change shows",
    "SR-009": "what follows a good header is the engine's to decode: a picture damaged behind it is not found here",
    "SR-011": "nothing is uploaded; a recording is capped by its bytes, since only decoding tells how long it lasts",
    "SS-008": "events that accounting needs not look into are relayed unread, so such a one may pass",
    "PG-018": "that no pattern finds a name is not tested: it is why a key whose data nobody has classed is private",
    "PG-020": "that it ends, and what that means; the measure is benchmarks/scanner.py",
    "PG-028": "by team and not by tenant; a history that is lost makes private what it could have known",
    "PG-034": "the page for operators says it; pieces of streams are passed on as they come",
}
"""The id → what of its text does not hold here by design, or is shown in another way."""


def names_in(path: Path) -> Iterator[str]:
    """The names of the tests in a file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name


def id_of(name: str) -> str | None:
    """The id that a test's name bears: UP-001 of test_up_001_refused."""
    found = re.match(r"test_([a-z]{2})_(\d{3})_\w", name)
    return f"{found[1].upper()}-{found[2]}" if found else None


def test_every_id_has_a_test_of_its_name() -> None:
    missing = []
    for name, ids in COVERED.items():
        there = {id_of(test) for test in names_in(HERE / name)}
        missing += [f"{name}: {one}" for one in ids if one not in there]
    assert missing == []


def test_every_test_with_an_id_is_in_the_table() -> None:
    """So that a case does not stand where nobody looks for it, nor under an id that there is not."""
    strange = []
    for path in sorted(HERE.glob("test_*.py")):
        ids = {one for test in names_in(path) if (one := id_of(test))}
        strange += [f"{path.name}: {one}" for one in sorted(ids - set(COVERED.get(path.name, ())))]
    assert strange == []


def test_what_is_said_to_be_elsewhere_is_there() -> None:
    missing = [
        f"{one}: {path} has no {test}"
        for one, tests in ELSEWHERE.items()
        for path, test in tests.items()
        if not any(name.startswith(test) for name in names_in(ROOT / path))
    ]
    assert missing == []


def test_no_id_is_there_twice_and_each_reason_is_one() -> None:
    ids = [*(one for found in COVERED.values() for one in found), *ELSEWHERE]
    assert len(ids) == len(set(ids))
    assert not set(ids) & set(NOT_RUN)
    assert set(IN_PART) <= set(ids)
    assert all(len(reason) > 20 for reason in (*NOT_RUN.values(), *IN_PART.values()))


def test_the_table_is_the_catalogue() -> None:
    if not CATALOGUE.is_file():
        pytest.skip("the catalogue is not beside this checkout")
    cases = re.findall(r"- \{id: ([A-Z]{2}-\d{3}), category: ([a-z-]+),", CATALOGUE.read_text())
    assert len(cases) > 100, "the catalogue is written in another way"
    wanted = {one for one, category in cases if category in CATEGORIES}
    assert wanted == {*(one for found in COVERED.values() for one in found), *ELSEWHERE, *NOT_RUN}


@pytest.mark.parametrize(("name", "found"), [("test_up_001_x", "UP-001"), ("test_up_1_x", None), ("test_x", None)])
def test_ids_are_read_from_names(name: str, found: str | None) -> None:
    assert id_of(name) == found
