"""`privacy why|release|test`: what is remembered as private, and what would be held back before anything is sent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from router.commands.context import (
    ConfigOption,
    JsonOption,
    Stop,
    console,
    open_context,
    open_home,
    operator,
    say_json,
    table,
)
from router.commands.heldback import Report, report_on
from router.ledger.marks import LOST, Mark
from router.ledger.released import look, lost_until, release
from serving.home import Home

app = typer.Typer(no_args_is_help=True, help="What is held back as private, why, and what is remembered of it.")
IdArgument = Annotated[str, typer.Argument(help="The id of an entry, or of the request that made it.")]
WHAT = {
    "message": "a message in which something was found",
    "answer": "an answer to a request that was above public by its content",
    "session": "a session that was above public by its content",
    "label": "a session that a header or the body raised",
}
NOT_TEXT = {
    "history": "something that was so before",
    "unreadable": "parts nobody here can read",
    "unsearched": "text that could not be searched whole",
}
"""What stands among the kinds and is none."""
GONE = (
    "The history was lost: the ledger, or the secret it is made with, is not the one that was here before. What was "
    "private cannot be known again, so every request counts as private until {until}. If that is meant: headgate "
    "privacy release lost"
)


@app.command()
def why(name: IdArgument, as_json: JsonOption = False) -> None:
    """Show what is remembered under an id: class, since when, by which request, what was found, until when.

    Never any text: the ledger holds a keyed hash of it and nothing else.

    Example: headgate privacy why 4f1c0a7be2d95583
    """
    home, out = open_home(), console()
    _there(home)
    if name == LOST:
        until = lost_until(home.ledger)
        if as_json:
            say_json({"lost": until > time.time(), "until": until or None})
        else:
            out.print(
                GONE.format(until=_day(until)) if until > time.time() else "The history is whole.", soft_wrap=True
            )
        return
    found = _found(home, name)
    if as_json:
        say_json([_json(mark) for mark in found])
        return
    for mark in found:
        for field, value in _rows(mark):
            out.print(f"{field:<9}{value}", soft_wrap=True)
        out.print()
    cleared = found[0].id if len(found) == 1 else name
    out.print(f"To clear {'it' if len(found) == 1 else 'them'}: headgate privacy release {cleared}", soft_wrap=True)


@app.command("release")
def clear(name: IdArgument) -> None:
    """Forget an entry, so that what it stands for may leave again. The ledger keeps that it was done, when and by whom.

    What detectors find is found again; this clears only what is remembered.

    Example: headgate privacy release 4f1c0a7be2d95583
    """
    home = open_home()
    _there(home)
    who, now = operator(), time.time()
    if name == LOST:
        if not lost_until(home.ledger):
            raise Stop("the history is whole; there is nothing to release")
        release(home.ledger, None, who, now)
        console().print("From now on only what is noted from here on counts. The ledger keeps that you released it.")
        return
    found = _found(home, name)
    for mark in found:
        release(home.ledger, mark, who, now)
        console().print(f"{mark.id} is released: {WHAT[mark.kind]}, {mark.data_class.name}.", soft_wrap=True)


@app.command("test")
def try_out(
    files: Annotated[list[Path], typer.Argument(help="Text, JSON requests, or JSONL with one request a line.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show what of these files would be held back, and why. Nothing is sent, and no matched text is shown.

    Needs no running router and no provider. Exit code 1 where something would stay here.

    Example: headgate privacy test notes.txt requests.jsonl
    """
    context = open_context(config)
    reports = report_on(context, files)
    if as_json:
        say_json([report.as_json() for report in reports])
    else:
        _show(reports)
    if any(report.stays for report in reports):
        raise typer.Exit(1)


def _show(reports: list[Report]) -> None:
    out = console()
    for report in reports:
        out.print(f"{report.file}: {report.data_class.name}, {report.meaning}", soft_wrap=True)
        if report.rows:
            rows = table("kind", "class", "count", "where")
            for row in report.rows:
                rows.add_row(row.kind, row.effect.name, str(row.count), row.places)
            out.print(rows)
    held = sum(report.stays for report in reports)
    out.print(
        f"{held} of {len(reports)} would stay here." if held else "Nothing here would be held back by its content."
    )


def _there(home: Home) -> None:
    if not home.ledger.exists():
        raise Stop("there is no ledger yet, so nothing is remembered; start with: headgate up")


def _found(home: Home, name: str) -> list[Mark]:
    """What the id names; one entry, or all that one request made. Raises Stop where that is not plain."""
    found = look(home.ledger, name)
    if not found:
        raise Stop(f"nothing is remembered under {name[:40]!r}; it may have ended, or been released")
    if len(found) > 1 and not name.startswith("req_"):
        raise Stop(f"{len(found)} entries begin so; give more of the id: {', '.join(mark.id for mark in found[:5])}")
    return found


def _rows(mark: Mark) -> list[tuple[str, str]]:
    kinds = [NOT_TEXT.get(kind, kind) for kind in mark.kinds.split(",") if kind]
    ended = "" if mark.expires > time.time() else " (it has ended)"
    return [
        ("id", mark.id), ("what", WHAT[mark.kind]), ("class", mark.data_class.name), ("team", mark.team),
        ("since", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(mark.at))), ("request", mark.request),
        ("found", ", ".join(kinds) or "nothing; its class was said"), ("until", _day(mark.expires) + ended),
    ]  # fmt: skip


def _json(mark: Mark) -> dict[str, Any]:
    return {
        "id": mark.id, "kind": mark.kind, "data_class": mark.data_class.name, "team": mark.team, "at": mark.at,
        "request": mark.request, "found": [kind for kind in mark.kinds.split(",") if kind], "expires": mark.expires,
    }  # fmt: skip


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
