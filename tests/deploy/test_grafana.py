"""deploy/grafana/: the dashboard is one that Grafana can load, and every number on it is one that the router has."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.deploy.test_prometheus import declared, named, tool

GRAFANA = ROOT / "deploy" / "grafana"
BUILT_IN = {"$__rate_interval": "1m"}
"""Variables that Grafana fills in, with a value to parse expressions with."""


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GRAFANA / "headgate.json").read_text())
    return found


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]


def test_panels_have_their_own_ids_places_and_source(dashboard: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    assert dashboard["schemaVersion"] >= 41
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    (variable,) = dashboard["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")
    for panel in panels(dashboard):
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["description"], f"{panel['title']} does not say what it shows"


def test_every_expression_is_promql(dashboard: dict[str, Any], tmp_path: Path) -> None:
    found = expressions(dashboard)
    for variable, value in BUILT_IN.items():
        found = [expression.replace(variable, value) for expression in found]
    assert not [expression for expression in found if "$" in expression]
    # Each as a rule of its own: promtool parses those.
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(found)]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run([tool("promtool"), "check", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(found)} rules found" in done.stdout


def test_every_metric_on_it_is_declared(dashboard: dict[str, Any]) -> None:
    assert named(" ".join(expressions(dashboard))) - declared() == set()


def test_every_metric_of_the_router_is_on_it(dashboard: dict[str, Any]) -> None:
    """A metric that nobody shows is one that nobody misses when it breaks."""
    shown = named(" ".join(expressions(dashboard)))
    plain = {name.removesuffix("_bucket") for name in declared() if not name.endswith(("_sum", "_count"))}
    assert plain - {name.removesuffix("_bucket") for name in shown} == set()


def test_grafana_finds_dashboard_and_source_where_compose_puts_them() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    put = {c["source"]: c["target"] for c in compose["services"]["grafana"]["configs"]}
    folder = GRAFANA / "provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards" / "headgate.yaml").read_text())["providers"]
    assert str(Path(put["grafana-dashboard"]).parent) == provider["options"]["path"]
    (source,) = yaml.safe_load((folder / "datasources" / "headgate.yaml").read_text())["datasources"]
    # Prometheus shares the router's network namespace, so it is found under the router's name.
    assert compose["services"]["prometheus"]["network_mode"] == "service:router"
    assert source["url"] == "http://router:9090"
