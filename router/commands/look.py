"""`doctor`, `explain`: what is wrong, and why something was decided. Nothing is changed."""

from __future__ import annotations

import sys
import urllib.parse
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from router.commands import checks
from router.commands.context import ConfigOption, JsonOption, Stop, ask_admin, console, open_context, say_json
from router.commands.explained import show_decision, show_record
from router.commands.keys import key_id
from router.commands.recent import last_id, show_last
from serving.catalogue import DataClass
from serving.home import find_home

LAST = 10
"""As many requests are listed where nobody says how many."""
LEVELS = {"ok": "green", "note": "cyan", "wrong": "bold red"}


def doctor(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Say what is missing or wrong here, and the command that mends it.

    Example: headgate doctor
    """
    found = checks.examine(open_context(config))
    if as_json:
        say_json([{"level": f.level, "what": f.what, "remedy": f.remedy} for f in found])
    else:
        _show_findings(found, console())
    if any(f.level == "wrong" for f in found):
        raise typer.Exit(1)


def _show_findings(found: list[checks.Finding], out: Console) -> None:
    """One line a finding and its remedy below it, whole, so that it can be copied from a narrow terminal too."""
    for finding in found:
        out.print(f"{finding.level:<6}", end="", style=LEVELS[finding.level])
        out.print(finding.what, soft_wrap=True)
        if finding.remedy:
            out.print(f"      → {finding.remedy}", soft_wrap=True)


def explain(
    number: Annotated[int | None, typer.Argument(metavar="N", help="With --last: how many to list.", min=1)] = None,
    request: Annotated[str, typer.Option(help="The id of a request that was made (x-request-id).")] = "",
    key: Annotated[str, typer.Option(help="Decide as for this key (its id).")] = "",
    data_class: Annotated[str, typer.Option("--data-class", help="Decide as for a key of this class.")] = "",
    last: Annotated[bool, typer.Option("--last", help="The request that came last; --last N lists so many.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Explain a decision: of a request that was made, or of a body on stdin (a dry run, nothing is sent).

    On a terminal, and without anything else, it lists the last requests. The ledger holds no text of them.

    Example: echo '{"model": "auto", "messages": []}' | headgate explain --data-class public
    """
    home = find_home()
    if data_class and data_class not in DataClass.__members__:
        raise Stop(f"--data-class: {data_class!r} is no data class; choose one of {', '.join(DataClass.__members__)}")
    dry = bool(key or data_class)
    if last and (request or dry):
        raise Stop("--last says which request; give it alone")
    if number is not None and not last:
        raise Stop(f"a number goes with --last: headgate explain --last {number}")
    if last and number is None:
        request = last_id(home)
    if not (request or dry) and (last or sys.stdin.isatty()):
        show_last(home, number or LAST, as_json, console())
        return
    if request:
        _tell(ask_admin(home, f"/requests/{urllib.parse.quote(request, safe='')}"), as_json, show_record)
        return
    body = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    if not body.strip():
        raise Stop("give a request body on stdin, e.g.: headgate explain < body.json; for requests that were made: "
                   "headgate explain --last 10")  # fmt: skip
    query = urllib.parse.urlencode({"key": key_id(key), "data_class": data_class})
    _tell(ask_admin(home, f"/explain?{query}", body), as_json, show_decision)


def _tell(found: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any], Console], None]) -> None:
    """For a program, or as `show` does for a person."""
    if as_json:
        say_json(found)
    else:
        show(found, console())
