"""`test`: the project's own tests, from a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import typer

import router
from router.commands.context import Stop

CHECKOUT = Path(router.__file__).parent.parent


def test(context: typer.Context) -> None:
    """Run the tests; arguments go on to pytest. What they need is installed first.

    Example: headgate test -m "not engine and not long"
    """
    pins = CHECKOUT / "deploy" / "requirements-dev.txt"
    if not pins.is_file() or not (CHECKOUT / "tests").is_dir():
        raise Stop("the tests come with the source; run ./headgate test in a checkout")
    if any(util.find_spec(name) is None for name in ("pytest", "xdist", "openai", "hypothesis", "psutil")):
        typer.echo("installing what the tests need …")
        uv = Path(sys.executable).with_name("uv")
        command = [
            str(uv),
            "pip",
            "install",
            "--quiet",
            "--require-hashes",
            "--python",
            sys.executable,
            "-r",
            str(pins),
        ]
        if subprocess.run(command, check=False).returncode:
            raise Stop("the tests' packages could not be installed; check the network and the disk")
    arguments = context.args
    if not any(a.startswith("-n") for a in arguments):
        arguments = ["-n", "auto", "--dist", "loadgroup", *arguments]
    code = subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=CHECKOUT, env=os.environ, check=False)
    raise typer.Exit(code.returncode)
