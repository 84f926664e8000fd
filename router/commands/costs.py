"""`costs`: what a month's requests cost, and what they would have cost at one frontier model."""

from __future__ import annotations

import datetime as dt
import re
import time
from typing import Annotated, Any

import typer
from rich.console import Console

from router.commands.context import ConfigOption, Context, JsonOption, Stop, console, open_context, say_json, table
from router.ledger import costs as ledger
from router.ledger.costs import Report, Sums
from router.ledger.prices import Prices
from serving.catalogue import Model

NOBODY = {"team": "(no team)", "model": "(no answer)", "lane": "(no lane)"}
"""What stands for a group without a name."""


def costs(
    by: Annotated[str, typer.Option(help="What to sum by: team, model or lane.")] = "team",
    month: Annotated[str, typer.Option(help="The month in UTC, as YYYY-MM; this one if not given.")] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show what a month's requests cost, and what one frontier model would have cost for all of them.

    Local cost is the internal rate: the share of GPU hours that a request took, by the settings `costs`. The comparison
    takes the tokens that each answering model counted; the frontier model may count the same text differently.

    Example: headgate costs --by model --month 2026-11
    """
    if by not in ledger.GROUPS:
        raise Stop(f"--by: {by[:40]!r} is nothing to sum by; choose one of {', '.join(ledger.GROUPS)}")
    first = _month(month)
    context = open_context(config)
    prices = Prices.of(context.found, time.time(), all_hosted=True)
    frontier = ledger.frontier_model(prices.catalogue)
    priced_at = ledger.frontier_cost(prices, frontier) if frontier else None
    found = _read(context, by, first, priced_at)
    if as_json:
        say_json(_json(found, by, first, prices, frontier if priced_at else None))
        return
    out = console()
    if not found.rows:
        out.print(f"No request of {first:%Y-%m} has ended yet.")
        return
    _show_rows(found, by, first, out)
    _show_notes(found, prices, out)
    if frontier is None:
        out.print("Nothing to compare with: no hosted model of the lane frontier has a price.", soft_wrap=True)
    elif priced_at is None:
        remedy = f"in headgate.yaml, {prices.remedy(frontier.name)}"
        out.print(f"Nothing to compare with: {frontier.name} is unpriced. To change it: {remedy}", soft_wrap=True)
    else:
        _show_saving(found.total, frontier, prices.catalogue.enabled(frontier), out)


def _read(context: Context, by: str, first: dt.date, frontier: ledger.FrontierCost | None) -> Report:
    if not context.home.ledger.exists():  # nothing was ever asked, which is no mistake
        return ledger.Report((), ledger.total(()), ())
    return ledger.read(context.home.ledger, by, first, frontier)


def _month(text: str) -> dt.date:
    """The first day of a month written as YYYY-MM, of this one where nothing is. Raises Stop."""
    today = dt.datetime.now(dt.UTC).date()
    if not text:
        return today.replace(day=1)
    if not re.fullmatch(r"[12]\d{3}-(0[1-9]|1[0-2])", text, re.ASCII):
        raise Stop(f"--month: {text[:40]!r} is no month; give e.g. {today:%Y-%m}")
    return dt.date(int(text[:4]), int(text[5:]), 1)


def _show_rows(found: Report, by: str, first: dt.date, out: Console) -> None:
    heads = ("requests", "answered", "prompt", "cached", "output", "local $", "hosted $", "total $")
    rows = table(by, *heads, whole=0)
    rows.padding = (0, 1, 0, 0)  # nine columns have to fit into 80 characters
    for column in rows.columns[1:]:
        column.justify, column.no_wrap = "right", True
    total = found.total
    digits = 2 if total.total >= 10 else 4 if total.total >= 0.01 or not total.total else 6
    for row in (*found.rows, total):
        tokens = (_short(count) for count in (row.prompt, row.cached, row.output))
        cells = (f"{row.requests:,}", f"{row.answered:,}", *tokens, *_money(row, digits))
        rows.add_row(row.name or NOBODY[by], *cells, style="bold" if row is total else None)
    out.print(f"{first:%Y-%m} (UTC)")
    out.print(rows)


def _money(row: Sums, digits: int) -> tuple[str, ...]:
    """Local, hosted and total; with a plus where some of it is not known."""
    if _unknown(row):
        return ("-", "-", "unpriced")
    local, hosted, total = (f"{usd:,.{digits}f}" for usd in (row.local, row.hosted, row.total))
    return (local, hosted, f"{total}+" if row.unpriced else total)


def _unknown(row: Sums) -> bool:
    """Whether nothing at all is known of what it cost: that is no 0."""
    return bool(row.unpriced) and not row.total


def _show_notes(found: Report, prices: Prices, out: Console) -> None:
    total = found.total
    out.print()
    if total.local:
        costs = prices.catalogue.site.costs
        share = f", at {costs.utilisation * 100:g} % utilisation" if costs.gpu_hour_usd is not None else ""
        out.print(f"Local $ is the internal rate: GPU hours that are paid for anyway{share}.", soft_wrap=True)
    if total.estimated:
        out.print(f"{_many(total.estimated, 'request')} in part estimated: usage was not said.", soft_wrap=True)
    if total.unpriced:
        out.print(f"{_many(total.unpriced, 'request')} unpriced, and in no sum of money (+):", soft_wrap=True)
    for one in found.unpriced:
        remedy = prices.remedy(one.model)
        how = f"in headgate.yaml, {remedy}" if remedy else "it has a price by now; what is written down stays"
        out.print(f"  {one.model} ({one.requests:,}): {how}", soft_wrap=True)


def _show_saving(total: Sums, frontier: Model, enabled: bool, out: Console) -> None:
    name = frontier.name if enabled else f"{frontier.name} (not enabled)"
    if total.compared:
        saved = total.frontier - total.paid
        share = f" ({saved / total.frontier * 100:.0f} %)" if total.frontier else ""
        out.print(
            f"Everything to {name} would have cost {_usd(total.frontier)}; these {total.compared:,} answers cost "
            f"{_usd(total.paid)}: saved {_usd(saved)}{share}.",
            soft_wrap=True,
        )
    else:
        out.print(f"Nothing to compare with {name} yet.", soft_wrap=True)
    if total.left_out:
        why = "of unknown cost or estimated usage, or embeddings"
        out.print(f"The comparison leaves out {total.left_out:,}: {why}.", soft_wrap=True)


def _json(found: Report, by: str, first: dt.date, prices: Prices, frontier: Model | None) -> dict[str, Any]:
    total, saving = found.total, None
    if frontier is not None:
        saving = {
            "frontier": frontier.name, "enabled": prices.catalogue.enabled(frontier), "requests": total.compared,
            "left_out": total.left_out, "frontier_usd": total.frontier, "paid_usd": total.paid,
            "saved_usd": total.frontier - total.paid,
            "saved_share": (total.frontier - total.paid) / total.frontier if total.frontier else None,
        }  # fmt: skip
    unpriced = [
        {"model": u.model, "place": u.place, "requests": u.requests, "setting": prices.remedy(u.model) or None}
        for u in found.unpriced
    ]
    rows = [{by: row.name or None} | _row(row) for row in found.rows]
    return {
        "month": f"{first:%Y-%m}", "by": by, "rows": rows, "total": _row(total), "unpriced": unpriced, "saving": saving
    }  # fmt: skip


def _row(row: Sums) -> dict[str, Any]:
    unknown = _unknown(row)
    return {
        "requests": row.requests, "answered": row.answered, "prompt_tokens": row.prompt, "cached_tokens": row.cached,
        "output_tokens": row.output, "local_usd": None if unknown else row.local,
        "hosted_usd": None if unknown else row.hosted, "total_usd": None if unknown else row.total,
        "unpriced": row.unpriced, "estimated": row.estimated,
    }  # fmt: skip


def _short(count: int) -> str:
    """A count of tokens in at most five characters."""
    if count < 10_000:
        return str(count)
    size, unit = next((size, unit) for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if count >= size)
    return f"{count / size:.0f}{unit}" if count / size >= 100 else f"{count / size:.1f}{unit}"


def _usd(amount: float) -> str:
    digits = 2 if abs(amount) >= 10 else 4 if abs(amount) >= 0.01 or not amount else 6
    return f"{'-' if amount < 0 else ''}${abs(amount):,.{digits}f}"


def _many(count: int, what: str) -> str:
    return f"1 {what} is" if count == 1 else f"{count:,} {what}s are"
