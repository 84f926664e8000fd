"""What every command needs: the home folder, the configuration, the console, and the router's admin socket."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from serving import catalogue
from serving.catalogue import Catalogue
from serving.home import Home, find_home

ConfigOption = Annotated[
    Path | None, typer.Option("--config", envvar="HEADGATE_CONFIG", help="The headgate.yaml to use.", show_envvar=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


class Stop(Exception):
    """A command cannot go on; the text is one sentence with the remedy, printed before exit code 1."""


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
    home = find_home()
    try:
        home.make()
    except OSError as broken:
        raise Stop(f"{home.root} cannot be used: {broken.strerror}; set HEADGATE_HOME to a folder of yours") from broken
    return Context(home, catalogue.load(site_file(home, config)))


def site_file(home: Home, config: Path | None) -> Path | None:
    """The headgate.yaml in use, as an absolute path."""
    found = catalogue.find_site(config, [Path.cwd(), home.root])
    return found.absolute() if found else None


def console() -> Console:
    """A console that wraps for people and leaves lines whole for programs."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=10_000, no_color=True)


def say_json(data: Any) -> None:
    typer.echo(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode())


def ask_socket(home: Home, name: str, path: str, body: bytes | None = None) -> Any:
    """One request to a Unix socket of this installation. Raises Stop where nothing listens or it refuses."""
    from router.upstream.connection import Address, Bounds, Connections, Deadlines, UpstreamError

    async def exchange() -> tuple[int, bytes]:
        connections = Connections(Deadlines(connect_s=1, first_byte_s=10, idle_s=10, total_s=15), Bounds())
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
        raise Stop("Headgate is not running here; start it with: headgate up") from gone
    try:
        found = orjson.loads(raw)
    except ValueError:
        found = raw.decode("utf-8", "replace")
    if status >= 400 and isinstance(found, dict) and "error" in found:
        raise Stop(str(found["error"]["message"]))
    return found


def yes_no(question: str, yes: bool, out: Console) -> bool:
    """Ask a person. `--yes` agrees beforehand; without a terminal the answer is no."""
    if yes:
        out.print(f"{question} yes (--yes)")
        return True
    if not out.is_terminal:
        out.print(f"{question} no (not a terminal; --yes agrees)")
        return False
    return typer.confirm(question)
