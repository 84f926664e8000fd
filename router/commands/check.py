"""`test`: the project's own tests, from a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import typer

import router
from router.commands.context import Stop
from serving import engines

CHECKOUT = Path(router.__file__).parent.parent


def test(context: typer.Context) -> None:
    """Run the tests; arguments go on to pytest. What they need is installed first.

    Example: headgate test -m "not engine and not long"
    """
    pins = CHECKOUT / "deploy" / "requirements-dev.txt"
    if not pins.is_file() or not (CHECKOUT / "tests").is_dir():
        raise Stop("the tests come with the source; run ./headgate test in a checkout")
    _have(pins)
    arguments = context.args
    if not any(a.startswith(("-n", "--numprocesses")) for a in arguments):
        # One worker more than cores, since many tests wait for processes.
        arguments = ["-n", str((os.cpu_count() or 1) + 1), "--dist", "loadgroup", *arguments]
    code = subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=CHECKOUT, env=os.environ, check=False)
    raise typer.Exit(code.returncode)


def _have(pins: Path) -> None:
    """Install what `pins` names, where that was not done yet or the pins have changed. Raises Stop."""
    done = Path(sys.prefix) / "pins-dev.txt"
    if done.is_file() and done.read_bytes() == pins.read_bytes():
        return
    typer.echo("installing what the tests need …")
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--require-hashes"]
    command += ["--python", sys.executable, "-r", str(pins)]
    if subprocess.run(command, check=False, env=engines.uv_environment(os.environ)).returncode:
        raise Stop("the tests' packages could not be installed; check the network and the disk")
    done.write_bytes(pins.read_bytes())
