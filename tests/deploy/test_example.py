"""deploy/headgate.example.yaml: it loads, its models fit two GPUs, and it sends what it says where it says."""

from __future__ import annotations

import datetime as dt
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from router import cli
from router.decision.decide import decide
from router.ledger.keys import Keyring
from router.ledger.prices import Prices
from router.records import Caller, Decision, Endpoint, Snapshot
from serving import catalogue
from serving.catalogue import LANES, Catalogue, Model
from serving.gpus import Gpu, Readings
from serving.home import Home
from serving.placement import Plan, place
from tests import known
from tests.conftest import ROOT
from tests.fakes.asking import ask, searched

EXAMPLE = ROOT / "deploy" / "headgate.example.yaml"
TODAY = dt.date(2026, 11, 21)
NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC).timestamp()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOCAL = ["qwen3.8-27b", "glm-4.7-flash", "kimi-vl-a3b", "deepseek-r1-8b"]
SCHEMA: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}

# What NVML says of such a card: 97,887 MiB, of which a little is the driver's.
CARD, TOTAL_GB, FREE_GB = "NVIDIA RTX PRO 6000 Blackwell Server Edition", 102.6, 102.0
TWO = Readings(tuple(Gpu(f"GPU-{i}", CARD, i, TOTAL_GB, FREE_GB, compute=12.0) for i in range(2)))


def written(tmp_path: Path, text: str) -> Catalogue:
    path = tmp_path / "headgate.yaml"
    path.write_text(text)
    return catalogue.load(path)


def vetted(text: str) -> str:
    """The example once somebody has read Kimi's code, and has filled in the two lines."""
    text = text.replace("# revision: COMMIT", f"revision: {COMMIT}")
    return text.replace("# vetted: {by: NAME OF WHO READ IT,", "vetted: {by: A. Reader,")


def plan(found: Catalogue) -> Plan:
    return place([found.find(name) for name in found.site.run], TWO, memory_free_gb=64)


def test_everything_it_runs_fits_two_gpus_once_its_code_is_vetted(tmp_path: Path) -> None:
    made = plan(written(tmp_path, vetted(EXAMPLE.read_text())))
    assert made.misfits == ()
    where = {placed.model.name: placed.gpus for placed in made.placed}
    assert where == {
        "qwen3.8-27b": ("GPU-0",), "kimi-vl-a3b": ("GPU-0",), "glm-4.7-flash": ("GPU-1",), "deepseek-r1-8b": ("GPU-1",),
    }  # fmt: skip
    for placed in made.placed:
        # Beside a neighbour each still gets what it needs: by its shape, or as its entry says.
        assert placed.variant is not None
        needed = placed.need.least_gb if placed.need is not None else placed.variant.memory_gb
        assert placed.share * TOTAL_GB >= needed, placed.model.name
        assert placed.context >= 32768
    for gpu in ("GPU-0", "GPU-1"):
        assert sum(placed.share for placed in made.placed if gpu in placed.gpus) <= 0.92


def test_as_it_is_code_that_nobody_read_does_not_start() -> None:
    made = plan(catalogue.load(EXAMPLE))
    assert [placed.model.name for placed in made.placed] == [name for name in LOCAL if name != "kimi-vl-a3b"]
    (misfit,) = made.misfits
    assert misfit.model == "kimi-vl-a3b"
    assert "nobody has vouched" in misfit.reason


def test_what_stands_in_its_comments_can_be_switched_on(tmp_path: Path) -> None:
    before, found = catalogue.load(EXAMPLE).site, written(tmp_path, known.uncommented(EXAMPLE.read_text())).site
    assert found.costs.throughput and found.engine.python
    added = found.router.model_fields_set - before.router.model_fields_set
    assert len(added) > 8
    assert found.router == before.router, "what it says are the defaults are others"


def test_it_names_two_providers_and_four_families() -> None:
    found = catalogue.load(EXAMPLE)
    assert sorted(name for name, p in found.providers.items() if p.enabled) == ["openai", "openrouter"]
    assert [found.models[name].family for name in found.site.run] == ["qwen", "glm", "kimi", "deepseek"]
    assert found.site.costs.gpu_hour_usd and found.site.costs.frontier == "gpt-6.1-sol"
    assert found.site.costs.throughput == {}, "a figure that nobody measured would price answers"
    assert found.site.routes["chat/completions"].check == "json_schema"


@pytest.mark.parametrize("line", ["key_file: /run/secrets/openai", "engine: {python: /usr/bin/python3}"])
def test_lines_to_take_in_can_be_taken_in(tmp_path: Path, line: str) -> None:
    text = EXAMPLE.read_text()
    assert f"# {line}" in text
    written(tmp_path, text.replace(f"# {line}", line))


def test_every_line_says_what_it_is_for() -> None:
    """No block of settings without a comment in or right above it."""
    lines = EXAMPLE.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"[a-z]\w*:", line):
            assert "#" in line or lines[number - 1].startswith("#"), f"line {number + 1}: {line}"


# Who may leave. The keys are made by the commands that stand in the file.


@dataclass
class Team:
    """The caller of one team's key, and the example's models, all of them up."""

    found: Catalogue
    caller: Caller

    def decide(self, text: str = "Hello", model: str = "auto", full: bool = False, **more: Any) -> Decision:
        size = more.pop("size", 4 * len(text) + 80)
        asked = ask(model, size=size, messages=[{"role": "user", "content": text}], **more)
        served = [self.found.models[name] for name in self.found.site.run] + self.found.hosted()
        snapshot = Snapshot(
            at=0.0, today=TODAY, catalogue=self.found, models=self.found.models,
            endpoints=tuple(endpoint(model, full) for model in served), spent=0.0,
        )  # fmt: skip
        return decide(asked, self.caller, searched(asked.body), snapshot)

    def order(self, *args: Any, **more: Any) -> list[str]:
        return [candidate.model.name for candidate in self.decide(*args, **more).order]


def endpoint(model: Model, full: bool) -> Endpoint:
    local = model.place == "local"
    address = f"unix:/run/{model.name}.sock" if local else "door"
    busy = model.limit if full and local else 0
    return Endpoint(
        name=model.name, model=model.name, address=address, state="ready", limit=model.limit, in_flight=busy
    )


@pytest.fixture(scope="module")
def teams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Team]:
    root = tmp_path_factory.mktemp("teams")
    home, text, path = Home(root, root / "engines"), EXAMPLE.read_text(), root / "headgate.yaml"
    home.make()
    path.write_text(vetted(text))
    ids = []
    for line in re.findall(r"^#   headgate (keys create .*)$", text, re.MULTILINE):
        words = [*shlex.split(line), "--config", str(path), "--json"]
        done = CliRunner().invoke(cli.build(), words, env={"HEADGATE_HOME": str(root)})
        assert done.exit_code == 0, done.output
        ids.append(yaml.safe_load(done.output)["id"])
    keyring = Keyring(home.ledger, home.secret("pepper"))
    found = Prices.of(catalogue.load(path), NOW).catalogue
    callers = [keyring.by_id(key) for key in ids]
    keyring.close()
    return {caller.team: Team(found, caller) for caller in callers if caller is not None}


def test_there_are_three_teams_of_three_data_classes(teams: dict[str, Team]) -> None:
    classes = {name: team.caller.data_class.name for name, team in teams.items()}
    assert classes == {"research": "private", "product": "internal", "web": "public"}


@pytest.mark.parametrize("full", [False, True])
def test_private_data_stays_whatever_is_asked(teams: dict[str, Team], full: bool) -> None:
    # Not for want of lanes: the class of the data alone keeps it.
    research = replace(teams["research"], caller=replace(teams["research"].caller, lanes=frozenset(LANES)))
    for asked in ({}, {"model": "cheap"}, {"model": "private"}, {"text": "Prove the theorem"}, {"size": 4 * 70_000}):
        assert set(research.order(full=full, **asked)) <= set(LOCAL), asked
    for outside in ("frontier", "gpt-6.1-sol", "openrouter/deepseek-v4.1-flash"):
        assert research.order(model=outside, full=full) == []
    # The same weights are here, so whoever names the hosted ones is answered from here.
    assert research.order(model="openrouter/qwen3.8-27b", full=full) == ["qwen3.8-27b"]


def test_internal_data_may_go_to_the_approved_model_alone(teams: dict[str, Team]) -> None:
    product = teams["product"]
    assert product.order() == [*LOCAL, "gpt-6.1-sol"]
    assert product.order(model="frontier") == ["gpt-6.1-sol"]
    assert product.order(full=True)[0] == "gpt-6.1-sol"
    asked = product.decide(escalate="hard")
    assert (asked.order[0].model.name, asked.trigger) == ("gpt-6.1-sol", "caller:hard")


def test_public_data_overflows_to_the_cheapest(teams: dict[str, Team]) -> None:
    found = teams["web"].decide(full=True)
    assert (found.order[0].model.name, found.trigger) == ("gpt-6-luna", "overflow")
    # A named model is that model: here, or the same weights elsewhere.
    assert teams["web"].order(model="qwen3.8-27b", full=True) == ["openrouter/qwen3.8-27b", "qwen3.8-27b"]


# Which rule takes what.


MATCHES: list[tuple[dict[str, Any], str, str]] = [
    ({"text": "What is the time in Lima?"}, "qwen3.8-27b", ""),
    ({"text": "Why does this Python loop never end?"}, "deepseek-r1-8b", "rule:code"),
    ({"text": "Please write a unit test"}, "deepseek-r1-8b", "rule:code"),
    ({"text": "Übersetze das ins Deutsche"}, "glm-4.7-flash", "rule:languages"),
    ({"text": "Fill in the form", **SCHEMA}, "glm-4.7-flash", "rule:structured"),
    ({"text": "Python", **SCHEMA}, "glm-4.7-flash", "rule:structured"),
    ({"text": "Summarise", "size": 4 * 70_000}, "kimi-vl-a3b", "rule:long-documents"),
    ({"text": "Prove the lemma"}, "gpt-6.1-sol", "rule:proofs"),
    ({"text": "improve the pythonic prose"}, "qwen3.8-27b", ""),
]


@pytest.mark.parametrize(("asked", "model", "trigger"), MATCHES)
def test_each_rule_takes_its_own(teams: dict[str, Team], asked: dict[str, Any], model: str, trigger: str) -> None:
    found = teams["product"].decide(**asked)
    assert (found.order[0].model.name, found.trigger) == (model, trigger)


def test_private_data_goes_to_the_model_for_the_task_too(teams: dict[str, Team]) -> None:
    found = teams["research"].decide("Refactor this")
    assert (found.order[0].model.name, found.trigger) == ("deepseek-r1-8b", "rule:code")


def test_every_rule_is_shown_to_match() -> None:
    rules = {f"rule:{rule.name}" for rule in catalogue.load(EXAMPLE).site.escalate}
    assert rules == {trigger for _, _, trigger in MATCHES if trigger}
