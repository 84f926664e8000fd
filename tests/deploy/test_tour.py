"""deploy/tour.yaml: the README's tour can be walked as it is written."""

from __future__ import annotations

from serving import catalogue, placement
from serving.gpus import Readings
from tests.conftest import ROOT
from tests.test_docs import section

TOUR = catalogue.load(ROOT / "deploy" / "tour.yaml")
PAGE = section((ROOT / "README.md").read_text(), "Ten minutes")


def test_it_fits_a_machine_without_a_gpu_and_overflows_soon() -> None:
    models = [TOUR.models[name] for name in TOUR.site.run]
    plan = placement.place(models, Readings(note="none"), 12.0)
    assert [p.model.name for p in plan.placed] == ["small", "second"]
    assert {p.limit for p in plan.placed} == {1}


def test_what_it_names_is_where_the_tour_puts_it() -> None:
    folder = next(line for line in PAGE.splitlines() if line.startswith("export HEADGATE_HOME="))
    home = folder.split()[1].split("=")[1]
    assert {TOUR.models[name].repo for name in TOUR.site.run} == {f"{home}/models/demo"}
    assert f"cp deploy/tour.yaml {home}/headgate.yaml" in PAGE
    port = TOUR.providers["far"].base_url.split(":")[2].split("/")[0]
    assert f"--port {port}" in PAGE and f"export {TOUR.providers['far'].key_env}=" in PAGE


def test_the_rule_matches_what_the_tour_says() -> None:
    (rule,) = TOUR.site.escalate
    assert any(word in PAGE.lower().split() or f'"{word}' in PAGE.lower() for word in rule.when.words)
    assert [m.name for m in TOUR.hosted()] == ["far-demo"]
