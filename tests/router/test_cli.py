"""Every command explains itself, whichever there are."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
import typer
from typer.testing import CliRunner

from router import cli


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))  # type: ignore[arg-type]
        else:
            yield (*path, name)


APP = cli.build()
ROOT = typer.main.get_command(APP)
ALL = list(commands(ROOT))  # type: ignore[arg-type]


def test_all_of_them_are_found() -> None:
    assert {" ".join(c) for c in ALL} >= {
        "up", "down", "status", "logs", "plan", "doctor", "chat", "explain", "test", "keys create", "keys set",
        "keys list", "keys rotate", "keys revoke", "keys log", "providers add", "providers list", "models add",
        "models diff", "config init", "config check",
    }  # fmt: skip


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(command: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(APP, [*command, "--help"], env={"COLUMNS": "120", "TERM": "dumb"})
    assert shown.exit_code == 0
    examples = [line.strip() for line in shown.output.splitlines() if line.strip().startswith("Example:")]
    assert len(examples) == 1
    assert f"headgate {' '.join(command)}" in examples[0]


@pytest.mark.parametrize("group", [[], ["keys"], ["providers"], ["models"], ["config"]], ids=" ".join)
def test_a_group_alone_shows_what_it_has(group: list[str]) -> None:
    shown = CliRunner().invoke(APP, group)
    assert "Usage:" in shown.output and "Commands" in shown.output
