"""`audit egress`: what left this machine, by three counts that must agree, and a signed statement of it."""

from __future__ import annotations

import datetime as dt
import platform
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from router.audit import egress
from router.audit.reconcile import Window
from router.commands.context import JsonOption, Stop, console, plain, say_json, table
from router.door.witness import NAME
from router.ledger.store import LedgerError
from serving.home import Home, find_home

app = typer.Typer(no_args_is_help=True, help="Check what left against three counts of it.")
UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
CODES: dict[egress.Verdict, int] = {"balanced": 0, "not balanced": 1, "cannot say": 3}
"""Exit codes; 2 is a mistake in the command itself."""
LISTED = 20
"""Sentences that are printed; the export has up to a thousand of each sort."""


class CannotSay(Stop):
    """Nothing was counted, so that nobody can say whether anything is amiss."""

    code = CODES["cannot say"]


@app.callback()
def _audit() -> None:
    """Keeps `egress` a command of its own name."""


@app.command("egress")
def egress_command(
    since: Annotated[str, typer.Option(help="From when on: 30d, 12h, 90m, 2w, or a UTC date.")] = "30d",
    until: Annotated[str, typer.Option(help="Up to when, written alike; now if not given.")] = "",
    export: Annotated[Path | None, typer.Option(help="A new folder for the signed statement.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Count what left by the ledger, by the door's book and by the kernel, and say where they disagree.

    Exit code 0: they agree. 1: they do not. 3: nobody can say, and why not; so where nothing could be counted at all.
    The statement can be checked by others, offline: see deploy/verify_statement.py.

    Example: headgate audit egress --since 30d --export statement
    """
    try:
        verdict = _egress(since, until, export, as_json)
    except (Stop, LedgerError) as stopped:
        raise CannotSay(str(stopped)) from stopped
    except OSError as broken:
        raise CannotSay(f"{broken.filename or 'the system'}: {broken.strerror or broken}") from broken
    raise typer.Exit(CODES[verdict])


def _egress(since: str, until: str, export: Path | None, as_json: bool) -> egress.Verdict:
    """Count and show. Raises Stop, LedgerError, OSError."""
    now = time.time()
    window = Window(_moment(since, "--since", now), _moment(until, "--until", now) if until else now)
    if not window.since < window.until <= now:
        raise Stop("--since has to be before --until, and neither can be in the future")
    home = _installation()
    if export is not None:
        _new_folder(export)
    found = egress.audit(home.ledger, home.book, home.book.with_name(NAME), window, export)
    said = _statement(found, home, export, now)
    if as_json:
        say_json(said)
    else:
        _show(said, export, console())
    return found.verdict


def _installation() -> Home:
    """The home folder of an installation that is there: none is made, nor any key, for an empty one. Raises Stop."""
    home = find_home()
    if not (home.ledger.exists() or home.book.exists()):
        missing = "has no ledger and no book" if home.root.is_dir() else "is not there"
        raise Stop(f"the home folder {home.root} {missing}; set HEADGATE_HOME to that of the installation")
    return home


def _statement(found: egress.Egress, home: Home, folder: Path | None, now: float) -> dict[str, Any]:
    from router.audit import statement  # only here: its cryptography takes a while to import

    said = statement.content(found, installation=home.installation(), machine=platform.node(), made_at=now)
    if folder is None:
        return said
    key = statement.signing_key(home)
    statement.export(folder, said, key)
    return said | {"key": statement.fingerprint(key.public_key())}


def _moment(text: str, option: str, now: float) -> float:
    """A time as Unix seconds: so long ago, or a UTC date or time. Raises Stop."""
    if ago := re.fullmatch(r"(\d{1,6})([mhdw])", text, re.ASCII):
        return max(0.0, now - int(ago[1]) * UNITS[ago[2]])
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise Stop(f"{option}: {text[:40]!r} is no time; give e.g. 30d, 12h or 2026-11-01") from None
    return (found if found.tzinfo else found.replace(tzinfo=dt.UTC)).timestamp()


def _new_folder(folder: Path) -> None:
    """Raises Stop where something lies there: an old excerpt beside a new statement would not verify."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Stop(f"--export: {folder} is there already; give a new folder")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _show(said: dict[str, Any], folder: Path | None, out: Console) -> None:
    out.print(f"{said['since']} to {said['until']}, installation {said['installation']} on {plain(said['machine'])}")
    out.print(
        f"{said['requests']:,} requests, {said['left']:,} left in {said['sendings']:,} sendings with {said['bytes']:,} "
        f"bytes (and {said['head_bytes']:,} of headers); {said['unaccounted_bytes']:,} bytes unaccounted.",
        soft_wrap=True,
    )
    if said["to"]:
        rows = table("provider", "host", "model", "rule", "class", "requests", "bytes", whole=0)
        for one in said["to"]:
            names = (one[name] for name in ("provider", "host", "model", "rule", "data_class"))
            rows.add_row(*map(plain, names), f"{one['requests']:,}", f"{one['bytes']:,}")
        out.print(rows)
    _show_kernel(said["kernel"], out)
    for title, sort in (("Discrepancies", "discrepancies"), ("Cannot be said", "doubts"), ("Good to know", "notes")):
        found = said[sort]
        if found["count"]:
            out.print(f"\n{title}: {found['count']:,}")
        for one in found["shown"][:LISTED]:
            out.print(f"  {plain(one['sentence'])}", soft_wrap=True)
        if found["count"] > LISTED:
            out.print(f"  … and {found['count'] - LISTED:,} more; --json shows up to {egress.SHOWN:,}")
    who = "Ledger, book and kernel" if said["kernel"]["witness"] else "Ledger and book"
    agree = {"balanced": "agree", "not balanced": "do not agree", "cannot say": "cannot be held against each other"}
    out.print(f"\n{who} {agree[said['verdict']]}.", soft_wrap=True)
    if folder is not None:
        out.print(f"Signed statement in {folder}; its key has the fingerprint {said['key']}", soft_wrap=True)


def _show_kernel(kernel: dict[str, Any], out: Console) -> None:
    if not kernel["witness"]:
        out.print(f"The kernel cannot be the third witness: {kernel['why_not']}.", soft_wrap=True)
        return
    least, most = kernel["explained"]
    out.print(
        f"Kernel, for {kernel['seconds'] / 3600:,.1f} hours: {kernel['frame_bytes']:,} bytes in {kernel['packets']:,} "
        f"packets, where the book explains {least:,} to {most:,}: {kernel['unaccounted_bytes']:,} unaccounted, and "
        f"{kernel['uncertain_bytes']:,} that cannot be told from what TLS, TCP and name look-ups add.",
        soft_wrap=True,
    )
