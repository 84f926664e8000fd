"""What `explain --last` looks up: the requests that came last, for whoever never saw the id of one."""

from __future__ import annotations

import time
from dataclasses import asdict

from rich.console import Console

from router.commands.context import plain, say_json, table
from router.ledger.recent import Recent, last
from serving.home import Home

NONE = "The ledger holds no request yet; to make one: headgate chat Hello"
LOST = "lost"
"""The outcome of a request whose router ended first; when that was nobody knows."""


def last_id(home: Home) -> str:
    """The id of the request that came last; empty where there is none. Raises LedgerError."""
    found = last(home.ledger, 1)
    return found[0].request if found else ""


def show_last(home: Home, most: int, as_json: bool, out: Console) -> None:
    """Print them, the newest first. Raises LedgerError."""
    found = last(home.ledger, most)
    if as_json:
        say_json([asdict(one) for one in found])
        return
    if not found:
        out.print(NONE)
        return
    rows = table("when", "request", "asked → answered", "outcome", "status", "cost $", "ms", whole=2)
    for one in found:
        rows.add_row(*_cells(one))
    out.print(rows)
    out.print(f"Why one went where it did: headgate explain --request {found[0].request}", soft_wrap=True)


def _cells(one: Recent) -> list[str]:
    ended = one.outcome != "open"
    when = time.strftime("%m-%d %H:%M:%S", time.localtime(one.at))
    asked = f"{plain(one.asked or 'not read')} → {plain(one.model or ('nobody' if ended else '…'))}"
    outcome = f"{one.outcome}: {one.error}" if one.error and one.outcome != LOST else one.outcome
    cost = "unpriced" if one.cost_usd is None else f"{one.cost_usd:.6f}"
    if one.asked is None or not ended:
        cost = ""  # refused before anything could cost, or not known yet
    took = "" if one.total_ms is None or one.outcome == LOST else f"{one.total_ms:.0f}"
    return [when, one.request, asked, outcome, str(one.status or ""), cost, took]
