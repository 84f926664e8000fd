"""The recall benchmark, made small: what is planted is found in every disguise, everyday texts are left alone."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from benchmarks import ordinary, recall
from benchmarks.disguises import DISGUISES, GOALS
from benchmarks.examples import EXAMPLES, Example
from router.scanner import rules
from router.scanner.scanner import Scanner
from serving.catalogue import DataClass, Privacy
from tests.house import ROOT


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> recall.Search:
    return recall.searching(Scanner(rules.of(Privacy()), tmp_path_factory.mktemp("patterns")))


def test_a_plain_example_of_every_kind_is_found(search: recall.Search) -> None:
    missed = {kind: share for kind in EXAMPLES if (share := recall.recall(search, kind, "plain", 3, seed=7)).found < 3}
    assert missed == {}


@pytest.mark.parametrize("disguise", [name for name, goal in GOALS.items() if goal is not None])
def test_a_disguise_hides_no_more_than_its_goal_lets_it(search: recall.Search, disguise: str) -> None:
    shares = [recall.recall(search, kind, disguise, 4, seed=7) for kind in recall.DISGUISED]
    found, of = sum(share.found for share in shares), sum(share.of for share in shares)
    goal = GOALS[disguise]
    assert goal is not None
    assert found / of >= goal, [share for share in shares if share.found < share.of]


def test_everyday_texts_seldom_rise_above_internal(search: recall.Search) -> None:
    effects = {recall.UNREAD: DataClass.private} | {kind.name: kind.effect for kind in rules.of(Privacy()).kinds}
    for row in recall.alarms(search, effects, {ordinary.SMALL: 60}, seed=7):
        assert row["raised"] <= 1, row


def test_no_file_here_holds_what_it_is_about(search: recall.Search) -> None:
    """Examples are put together when they are needed, the scanner's planted ones too."""
    names = {kind.name for kind in rules.of(Privacy()).kinds}
    private = {name for name in names if name.startswith("credential_") or name in ("card", "iban")}
    files = [*(ROOT / "router" / "scanner").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    files += (ROOT / "tests" / "router" / "scanner").glob("test_[cr]*.py")
    assert len(files) > 20
    assert {path.name: found for path in files if (found := private & set(search([path.read_text()])))} == {}


def test_a_scanner_that_finds_nothing_misses_every_goal() -> None:
    """The benchmark can fail."""
    shares = recall.disguised(lambda _: recall.Counter(), samples=1, seed=1)
    rows = {name: [{"kind": s.name, "found": s.found, "of": s.of} for s in some] for name, some in shares.items()}
    made = recall.goals({"disguises": rows, "alarms": []})
    assert {goal.met for goal in made} == {False, None}


def test_labelled_sentences_are_counted_by_what_is_in_them(search: recall.Search, tmp_path: Path) -> None:
    mail = EXAMPLES["email"](random.Random(1)).value
    rows = [
        {"text": f"write to {mail}", "spans": [{"entity_type": "EMAIL_ADDRESS"}]},
        {"text": f"his name is {mail}", "spans": [{"entity_type": "PERSON"}]},
        {"text": "no mail at all", "spans": [{"entity_type": "EMAIL_ADDRESS"}]},
    ]
    with gzip.open(tmp_path / "some.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    found = recall.presidio(search, tmp_path)
    assert found["EMAIL_ADDRESS"] == {"sentences": 2, "found": 1, "mistaken": 1}
    assert found["PERSON"] == {"sentences": 1, "found": 0, "mistaken": 0}


def test_every_disguise_changes_a_value_but_the_plain_one() -> None:
    chance = random.Random(3)
    example = Example("my id is ", "Pa1xo 9ec")
    for name, disguise in DISGUISES.items():
        assert (example.value in "".join(disguise(example, chance))) == (
            name in ("plain", "split over two messages")
        ), name
