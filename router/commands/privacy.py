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
from router.ledger.released import holding, known_time, look, lost_until, of_kinds, release, release_loss
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
    "The history was lost: the ledger, or the secret it is made with, is not the one that was here before, or not all "
    "that was private could be written down when the router stopped. What was private cannot be known again, so every "
    "request counts as private until {until}. If that is meant: headgate privacy release lost"
)
SHOWN = 20
"""Entries that are shown, or named, one by one."""


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
            say_json({"lost": until > 0, "until": until or None})
        else:
            out.print(GONE.format(until=_day(until)) if until else "The history is whole.", soft_wrap=True)
        return
    found = _found(home, name)
    if as_json:
        say_json([_json(mark) for mark in found])
        return
    known = known_time(home.ledger)
    for mark in found[:SHOWN]:
        for field, value in _rows(mark, known):
            out.print(f"{field:<9}{value}", soft_wrap=True)
        out.print()
    if len(found) > SHOWN:
        out.print(f"… and {len(found) - SHOWN} more; all of them: headgate privacy why {name} --json", soft_wrap=True)
    cleared = found[0].id if len(found) == 1 else name
    out.print(f"To clear {'it' if len(found) == 1 else 'them'}: headgate privacy release {cleared}", soft_wrap=True)


@app.command("release")
def clear(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of entries, or of requests that made them.")] = None,
    held: Annotated[str, typer.Option("--from", help="All entries that held this request back.")] = "",
    kind: Annotated[str, typer.Option(help="All entries of this kind of finding alone, as in privacy.effects.")] = "",
) -> None:
    """Forget entries, so that what they stand for may leave again. The ledger keeps that it was done, when and by whom.

    What detectors find is found again; this clears only what is remembered.

    Example: headgate privacy release 4f1c0a7be2d95583
    """
    if bool(ids) + bool(held) + bool(kind) != 1:
        raise Stop("give ids, or --from with a request, or --kind with a kind of finding, and one of these alone")
    home = open_home()
    _there(home)
    who, now, out = operator(), time.time(), console()
    names = ids or []
    if LOST in names and not lost_until(home.ledger):
        raise Stop("the history is whole; there is nothing to release")
    if held:
        found = _held(home, held)
    elif kind:
        found = _of_kind(home, kind)
    else:
        found = [mark for name in names if name != LOST for mark in _found(home, name)]
    marks = list({mark.mark: mark for mark in found}.values())
    release(home.ledger, marks, who, now)
    if LOST in names:
        release_loss(home.ledger, who, now)
        out.print("From now on only what is noted from here on counts. The ledger keeps that you released it.")
    for mark in marks[:SHOWN]:
        out.print(f"{mark.id} is released: {WHAT[mark.kind]}, {mark.data_class.name}.", soft_wrap=True)
    if len(marks) > SHOWN:
        out.print(f"… and {len(marks) - SHOWN} more.")


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


def _held(home: Home, request: str) -> list[Mark]:
    """What counted when that request was decided, and still does."""
    found = holding(home.ledger, request)
    if found is None:
        raise Stop(f"the ledger has no decision on a request {request[:40]!r}")
    if not found:
        raise Stop(f"nothing that is remembered holds {request} back, or it was released; see: headgate explain "
                   f"--request {request}")  # fmt: skip
    return found


def _of_kind(home: Home, kind: str) -> list[Mark]:
    """What is remembered for this kind alone."""
    found, others = of_kinds(home.ledger, lambda name: name == kind or name.startswith(f"{kind}_"))
    more = f"; {others} are there for it and for others too" if others else ""
    if not found:
        raise Stop(f"nothing is remembered for the kind {kind[:40]!r} alone{more}")
    if more:
        console().print(f"{others} entries stay: they are there for other kinds as well.")
    return found


def _rows(mark: Mark, known: float) -> list[tuple[str, str]]:
    """`known`: the latest time that the history knows, which is what ends it."""
    kinds = [NOT_TEXT.get(kind, kind) for kind in mark.kinds.split(",") if kind]
    ended = "" if mark.expires > known else " (it has ended)"
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
