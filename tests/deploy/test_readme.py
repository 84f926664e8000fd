"""deploy/README.md: its paths lead somewhere, its commands can be typed, and it names all that lies there."""

from __future__ import annotations

import typer

from router import cli
from tests.conftest import ROOT
from tests.test_docs import command_lines, paths, rows, section, ticked, wrong_calls

PAGE = {"deploy/README.md": (ROOT / "deploy" / "README.md").read_text()}
SITE_OWN = frozenset({"headgate.yaml", "secrets"})
"""What a site makes beside the files."""


def test_every_path_leads_somewhere() -> None:
    assert paths(PAGE, ROOT) == []


def test_command_lines_can_be_typed() -> None:
    assert list(command_lines(PAGE["deploy/README.md"]))
    assert wrong_calls(PAGE, typer.main.get_command(cli.build())) == []


def test_everything_here_is_named() -> None:
    top = PAGE["deploy/README.md"].split("\n## ")[0]
    named = {name.rstrip("/") for row in rows(top) for name in ticked(row[0])}
    there = {path.name for path in (ROOT / "deploy").iterdir() if not path.name.startswith(".")}
    assert there - SITE_OWN - {"README.md"} == named


def test_it_says_what_was_run_and_what_was_only_checked() -> None:
    table = rows(section(PAGE["deploy/README.md"], "Run, only checked, not run"))
    assert all("**run" in row[1] or "**only checked**" in row[1] for row in table)
    told = " ".join(row[0] for row in table)
    for part in ("example", "compose.yaml", "Dockerfiles", "systemd/", "prometheus/", "grafana/"):
        assert part in told
