"""Every command explains itself, whichever there are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from router import cli
from tests import house


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


def reading(folder: Path, *args: str, ignored: bool = False) -> subprocess.Popen[str]:
    """The command line in its first moments: it tells what Ctrl-C would do, and reads a package without end."""
    (folder / "typer.py").write_text(
        "import signal, time\nprint(signal.getsignal(signal.SIGINT), flush=True)\ntime.sleep(60)\n"
    )
    before = signal.SIG_IGN if ignored else signal.SIG_DFL
    return subprocess.Popen(
        [sys.executable, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{house.ROOT}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, before),
    )  # fmt: skip


def test_ctrl_c_in_the_first_moments_ends_it_without_a_traceback(tmp_path: Path) -> None:
    with reading(tmp_path, "-m", "router.cli", "up") as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert (out, err, child.returncode) == ("", "", -signal.SIGINT)


@pytest.mark.parametrize(
    ("args", "ignored", "expected"),
    [
        (("-m", "router.cli"), True, str(signal.SIG_IGN)),  # as whatever a shell starts in the background
        (("-c", "import router.cli"), False, str(signal.default_int_handler)),
    ],
)
def test_what_ctrl_c_does_is_left_alone_where_somebody_else_says_so(
    tmp_path: Path, args: tuple[str, ...], ignored: bool, expected: str
) -> None:
    with reading(tmp_path, *args, ignored=ignored) as child:
        assert child.stdout is not None
        told = child.stdout.readline().strip()
        child.kill()
    assert told == expected
