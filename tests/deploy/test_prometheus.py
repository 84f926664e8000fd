"""deploy/prometheus/: promtool takes all of it, the alerts fire, and a real Prometheus reads a real router."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.ledger.metrics import Metrics
from tests.conftest import ROOT, House, ask, free_port

PROMETHEUS = ROOT / "deploy" / "prometheus"


def tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not here (Debian: apt install prometheus)")
    return found


def declared() -> frozenset[str]:
    """Every metric of the router under the names it is scraped by."""
    return Metrics().names()


def named(text: str) -> set[str]:
    """The metrics that an expression speaks of."""
    return set(re.findall(r"\bheadgate_\w+", text))


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    # The token's file is a secret of the deployment; promtool wants to see one.
    token, config = tmp_path / "token", tmp_path / "prometheus.yml"
    token.write_text("x")
    config.write_text((PROMETHEUS / "prometheus.yml").read_text().replace("/run/secrets/admin-token", str(token)))
    shutil.copy(PROMETHEUS / "rules.yml", tmp_path)
    done = subprocess.run([tool("promtool"), "check", "config", str(config)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules())} rules found" in done.stdout


def test_each_alert_fires_when_it_should_and_not_before() -> None:
    command = [tool("promtool"), "test", "rules", "rules.test.yml"]
    done = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_both_ways() -> None:
    tests = yaml.safe_load((PROMETHEUS / "rules.test.yml").read_text())["tests"]
    cases = [(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]]
    for rule in rules():
        assert {fires for name, fires in cases if name == rule["alert"]} == {True, False}, rule["alert"]


def test_alerts_speak_of_metrics_that_there_are() -> None:
    assert named(" ".join(rule["expr"] for rule in rules())) - declared() == set()


def test_every_alert_says_what_to_do() -> None:
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")


@pytest.mark.long
async def test_a_real_prometheus_reads_a_real_router(house: House, tmp_path: Path) -> None:
    port, web = free_port(), free_port()
    await house.start(router={"admin_port": port})
    for _ in range(3):
        assert (await house.post(ask("small"), house.key())).status == 200
    text = (PROMETHEUS / "prometheus.yml").read_text()
    text = text.replace("/run/secrets/admin-token", str(house.home.secrets / "admin-token"))
    text = text.replace("127.0.0.1:8081", f"127.0.0.1:{port}").replace("_interval: 5s", "_interval: 200ms")
    (tmp_path / "prometheus.yml").write_text(text.replace("scrape_timeout: 4s", "scrape_timeout: 200ms"))
    shutil.copy(PROMETHEUS / "rules.yml", tmp_path)
    process = await asyncio.create_subprocess_exec(
        tool("prometheus"), f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{web}", stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        found = await _value(house, web, 'sum(headgate_requests_total{place="local"})')
        assert found == "3"
        assert await _value(house, web, 'up{job="headgate"}') == "1"
    finally:
        process.terminate()
        await process.wait()


async def _value(house: House, web: int, query: str) -> str:
    """What Prometheus answers, once it knows."""
    url = f"http://127.0.0.1:{web}/api/v1/query?query={urllib.parse.quote(query)}"
    for _ in range(600):
        try:
            async with house.client.get(url) as answer:
                found = await answer.read()  # while it starts it answers 503 in plain text
                result = json.loads(found)["data"]["result"] if answer.status == 200 else []
        except OSError:
            result = []
        if result:
            return str(result[0]["value"][1])
        await asyncio.sleep(0.05)
    return "nothing"
