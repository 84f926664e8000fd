"""What every command needs: the home folder, the configuration, the console, and the router's admin socket."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from serving import catalogue
from serving.catalogue import Catalogue
from serving.home import Home, find_home

ConfigOption = Annotated[
    Path | None, typer.Option("--config", envvar="HEADGATE_CONFIG", help="The headgate.yaml to use.", show_envvar=True)
]
PATIENCE_S, NEXT_S = 10.0, 3.0
"""Seconds an answer is waited for; less where another worker can be asked."""
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


class Stop(Exception):
    """A command cannot go on; the text is one sentence with the remedy, printed before its exit code."""

    code = 1


class NotRunning(Stop):
    """Nothing of this installation listens there."""


class Silent(Stop):
    """Something of this installation listens there and does not answer."""


@dataclass(frozen=True, slots=True)
class Context:
    """The installation a command works on."""

    home: Home
    found: Catalogue

    @property
    def site_path(self) -> Path:
        """The headgate.yaml that is read, or where one would be written."""
        return self.found.path or self.home.root / "headgate.yaml"


def open_context(config: Path | None) -> Context:
    """Find the home folder and read the configuration. Raises ConfigError."""
    home = open_home()
    return Context(home, catalogue.load(site_file(home, config)))


def open_home() -> Home:
    """The home folder alone, for what must work while headgate.yaml is broken. Raises Stop."""
    home = find_home()
    try:
        home.make()
    except OSError as broken:
        raise Stop(f"{home.root} cannot be used: {broken.strerror}; set HEADGATE_HOME to a folder of yours") from broken
    return home


def site_file(home: Home, config: Path | None) -> Path | None:
    """The headgate.yaml in use, as an absolute path."""
    found = catalogue.find_site(config, [Path.cwd(), home.root])
    return found.absolute() if found else None


def see_log(home: Home, name: str) -> str:
    """The command that shows a log, or "" where there is no such log: it may have failed before it wrote a word."""
    return f"headgate logs {name}" if (home.logs / f"{name}.log").is_file() else ""


def console() -> Console:
    """A console that wraps for people and leaves lines whole for programs. It shows text as it is: no markup."""
    made = Console(highlight=False, markup=False, emoji=False)
    if made.is_terminal:
        return made
    return Console(highlight=False, markup=False, emoji=False, width=10_000, no_color=True)


def table(*columns: str, whole: int = 1) -> Table:
    """A table without lines. Cells fold, so that nothing is cut off in a narrow terminal, but for the first `whole`."""
    made = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        made.add_column(column, overflow="fold", no_wrap=index < whole)
    return made


def plain(text: str) -> str:
    """`text` without colours and other control sequences: a model or a log must not steer somebody's terminal."""
    return "".join(c for c in ANSI.sub("", text) if c.isprintable() or c in "\n\t")


def say_json(data: Any) -> None:
    typer.echo(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode())


def ask_admin(home: Home, path: str, body: bytes | None = None) -> Any:
    """What the router says to the operator: its first worker, or the next one while that is started again.

    Raises what `ask_socket` does.
    """
    others = home.socket("admin").parent.glob("admin-*.sock")  # those of workers there are no more refuse at once
    names = ["admin", *sorted((file.stem for file in others), key=lambda name: (len(name), name))]
    silent: Stop | None = None
    for name in names:
        try:
            return ask_socket(home, name, path, body, patience_s=PATIENCE_S if len(names) == 1 else NEXT_S)
        except (NotRunning, Silent) as none:
            silent = none if silent is None or isinstance(none, Silent) else silent
    assert silent is not None
    raise silent


def not_running(home: Home) -> str:
    """The sentence for it; it names the folder, for another shell may have another HEADGATE_HOME."""
    return f"Headgate is not running here (its state: {home.root}); start it with: headgate up"


def ask_socket(
    home: Home, name: str, path: str, body: bytes | None = None, patience_s: float = PATIENCE_S
) -> Any:  # fmt: skip
    """One request to a Unix socket of this installation.

    Raises NotRunning where nothing listens, Silent where there is no answer, Stop where the answer is an error.
    """
    from router.upstream.connection import Address, Bounds, Connections, Deadlines, UpstreamError

    async def exchange() -> tuple[int, bytes]:
        deadlines = Deadlines(connect_s=1, first_byte_s=patience_s, idle_s=10, total_s=patience_s + 5)
        connections = Connections(deadlines, Bounds())
        address = Address.parse(f"unix:{home.socket(name)}")
        try:
            if body is None:
                response = await connections.get(address, path)
            else:
                response = await connections.post(address, path, [("content-type", "application/json")], body)
            return response.status, await response.read()
        finally:
            await connections.close()

    try:
        status, raw = asyncio.run(exchange())
    except UpstreamError as gone:
        if gone.kind == "refused":
            raise NotRunning(not_running(home)) from gone
        log = "router" if name.startswith("admin") else name
        raise Silent(f"the {log} does not answer: {gone}; see: headgate logs {log}") from gone
    try:
        found = orjson.loads(raw)
    except ValueError:
        found = {}
    if status != 200:
        error = found.get("error") if isinstance(found, dict) else None
        raise Stop(str(error["message"]) if error else f"{path} was answered with status {status}")
    return found


def yes_no(question: str, yes: bool, out: Console) -> bool:
    """Ask a person. `--yes` agrees beforehand; without a terminal the answer is no."""
    if yes:
        out.print(f"{question} yes (--yes)")
        return True
    if not (out.is_terminal and sys.stdin.isatty()):
        out.print(f"{question} no (not a terminal; --yes agrees)")
        return False
    return typer.confirm(question)


def operator() -> str:
    """The user of this machine who gives the command."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
