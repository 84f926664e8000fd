"""`door open|close|status`: the operator's own hand on the only way out, and what it last let through."""

from __future__ import annotations

import time
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from router.commands.context import (
    JsonOption,
    NotRunning,
    Silent,
    Stop,
    ask_socket,
    console,
    open_home,
    operator,
    say_json,
    table,
)
from router.door import book, closing
from router.door.closing import Shut
from serving.home import Home

INSIDE = "docker compose exec door python -P -m router.cli"
"""How a command is given where the door's own files are, in deploy/compose.yaml."""
WITHIN_S = 5.0
"""Seconds the door has to say that it is closed."""
TO_BE_SURE = "to be sure end it: headgate down, in containers: docker compose stop door"

app = typer.Typer(
    no_args_is_help=True, help="Close the only way out at once, open it again, or see how it stands."
)  # fmt: skip


@app.command()
def close(
    reason: Annotated[str, typer.Option("--reason", help="Why, in a few words; it goes into the book.")] = "",
) -> None:
    """Let nothing leave from now on, over restarts too; what is under way is cut off, and local models go on.

    It ends well only where the door itself says that it is closed.

    Example: headgate door close --reason "we look into something"
    """
    home, out = open_home(), console()
    shut = Shut(time.time(), operator(), reason[: closing.LONGEST])
    try:
        word = orjson.dumps({"by": shut.by, "reason": shut.reason})
        said = ask_socket(home, "door", "/close", word, patience_s=WITHIN_S)
    except Stop as silent:
        said = _left_word(home, shut, silent)
    if said["open"]:
        raise Stop(f"the door was told and says that it is open; {TO_BE_SURE}")
    out.print("The door is closed, by its own word: nothing leaves, local models go on.")
    out.print("To open it: headgate door open")


@app.command("open")
def open_(as_json: JsonOption = False) -> None:
    """Let leave again what may leave by its permit. Only `door close` is undone by it, no other reason.

    Example: headgate door open
    """
    home, out = open_home(), console()
    before = closing.look(closing.marker(home.book))
    closing.reopen(closing.marker(home.book))
    if (said := _ask(home)) is None and before is not None:
        _write_down(home, "door_opened", {"by": "operator", "since": before.at})
    if said is not None and said["operator"]:
        raise Stop(f"the door is still closed: the file that says so lies with the door and not in {home.book.parent}; "
                   f"in containers: {INSIDE} door open")  # fmt: skip
    if as_json:
        say_json({"was_closed": before is not None, "door": said})
    elif before is None:
        out.print("The operator had not closed it.")
    else:
        out.print("The door is open again for what may leave.")
    if said is not None and not said["open"] and not as_json:
        out.print(f"It lets nothing out still: {said['closed_because']}", soft_wrap=True)


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Show whether anything may leave, since when not and why, and what left last to each provider.

    Example: headgate door status --json
    """
    home = open_home()
    said = _ask(home)
    shut = closing.look(closing.marker(home.book))
    if said is not None:  # its own word, and not what a file says that it may not have
        shut = Shut(**said["operator"]) if said["operator"] else None
    try:
        last = book.latest(home.book, "sending", "provider")
        ends = book.latest(home.book, "ended", "permit")
    except FileNotFoundError:
        last, ends = {}, {}
    rows = [_sending(entry, ends.get(str(entry.get("permit")), {})) for entry in last.values()]
    if as_json:
        closed = shut._asdict() if shut else None
        say_json({"running": said is not None, "operator": closed, "door": said, "last": rows})
        return
    _show(shut, said, rows, console())


def _ask(home: Home) -> dict[str, Any] | None:
    """What the running door says of itself, after it has looked whether it is closed; None where none runs."""
    try:
        found: dict[str, Any] = ask_socket(home, "door", "/look", b"{}")
        return found
    except NotRunning:
        return None


def _left_word(home: Home, shut: Shut, silent: Stop) -> dict[str, Any]:
    """No door takes the word: leave it where a door of this folder looks before each sending, and ask again.

    Returns what the door says then. Raises Stop where it says nothing: it was not seen to be closed.
    """
    path = closing.marker(home.book)
    try:
        closing.close(path, shut)
    except OSError as full:
        raise Stop(f"{silent}; and {path} cannot be written: {full.strerror}; {TO_BE_SURE}") from full
    if isinstance(silent, Silent):
        raise Stop(f"the door was not seen to close ({silent}); where it has {path} it lets nothing more out, for that "
                   f"is written; {TO_BE_SURE}") from silent  # fmt: skip
    if (said := _ask(home)) is not None:  # one that has started meanwhile
        return said
    _write_down(home, "door_closed", {"by": "operator", "since": shut.at, "user": shut.by, "reason": shut.reason})
    raise Stop(f"no door runs, so none was seen to close; one that starts with {path} stays closed, for that is "
               "written; once it runs, look: headgate door status") from silent  # fmt: skip


def _write_down(home: Home, kind: str, entry: dict[str, Any]) -> None:
    """Write it into the book of a door that does not run. Where no book lies there is none of a door's here."""
    if not home.book.exists():
        return
    try:
        opened = book.open_book(home.book, "")
    except book.BookError as taken:
        raise Stop(f"it is done, but does not stand in the book: {taken}") from taken
    try:
        opened.write(kind, entry, sync=True)
    finally:
        opened.close()


def _sending(entry: dict[str, Any], ended: dict[str, Any]) -> dict[str, Any]:
    names = ("provider", "at", "model", "data_class", "rule", "sent_bytes", "head_bytes", "request")
    found = {name: entry.get(name) for name in names}
    return found | {"ended": ended.get("ended"), "error": ended.get("error")}


def _show(shut: Shut | None, said: dict[str, Any] | None, rows: list[dict[str, Any]], out: Console) -> None:
    if said is None:
        state = "does not run, and is to stay closed" if shut else "does not run"
        why = str(shut) if shut else "it runs where a provider is enabled: headgate up"
    else:
        state, why = ("open", "") if said["open"] else ("closed", said["closed_because"])
    out.print(f"door      {state}{f': {why}' if why else ''}", soft_wrap=True)
    if shut:
        told = f", by {shut.by}" if shut.by else ""
        out.print(f"since     {_time(shut.at)}{told}{f': {shut.reason}' if shut.reason else ''}", soft_wrap=True)
    if said is not None:
        trouble, ago = said["scanner"]["trouble"], said["scanner"]["passed_s_ago"]
        passed = f"its self-test passed {ago:.0f} s ago" if ago is not None else "its self-test has not passed"
        out.print(f"scanner   {trouble or passed}", soft_wrap=True)
    providers = said["providers"] if said else {}
    last = {row["provider"]: row for row in rows}
    shown = table("provider", "may be asked", "last", "model", "class", "rule", "bytes", "ended", whole=8)
    for name in sorted({*(n for n, p in providers.items() if p["enabled"]), *last}):
        row, may = last.get(name), providers.get(name, {}).get("reason")
        asked = "unknown" if may is None else may or "yes"
        cells = ("", "", "", "", "", "")
        if row is not None:
            size = (row["sent_bytes"] or 0) + (row["head_bytes"] or 0)
            ended = row["error"] or row["ended"] or "under way"
            cells = (_time(row["at"]), row["model"], row["data_class"], str(row["rule"] or ""), str(size), ended)
        shown.add_row(name, asked, *cells)
    if shown.row_count:
        out.print(shown)


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at else "unknown"
