"""`models clearance`: what each hosted model may receive today, by whose word, and what its provider promises."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import typer

from router.commands.context import ConfigOption, JsonOption, console, open_context, say_json, table
from router.ledger.bodies import cleared
from serving.catalogue import Catalogue, Model

UNKNOWN = "unknown"


def clearance(
    everything: Annotated[bool, typer.Option("--all", help="Models of providers that are not enabled, too.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show what hosted models may receive, and what their providers promise; what is unknown is not promised.

    Example: headgate models clearance
    """
    found = open_context(config).found
    today = dt.datetime.now(dt.UTC).date()
    models = [m for m in found.models.values() if m.place == "hosted" and (everything or found.enabled(m))]
    rows = [_row(found, model, today) for model in models]
    if as_json:
        say_json(rows)
        return
    if not rows:
        console().print("No hosted provider is enabled, so nothing leaves; those there are: "
                        "headgate models clearance --all", soft_wrap=True)  # fmt: skip
        return
    shown = table("model", "provider", "may receive", "its data is in", "kept for", "trains on it", "tags", whole=2)
    for row in rows:
        days, trains = row["retention_days"], row["trains_on_data"]
        shown.add_row(
            row["model"], row["provider"] + ("" if row["enabled"] else " (off)"), _may(row),
            ", ".join(row["regions"]) or UNKNOWN, UNKNOWN if days is None else f"{days:g} days",
            UNKNOWN if trains is None else "yes" if trains else "no", ", ".join(row["compliance"]) or "none",
        )  # fmt: skip
    console().print(shown)


def _row(found: Catalogue, model: Model, today: dt.date) -> dict[str, Any]:
    return {
        "model": model.name, "provider": model.provider, "enabled": found.enabled(model), "lanes": list(model.lanes),
        "may_receive": model.cleared_for(today).name, "approved": cleared(model).get("approved"),
        "regions": sorted(model.kept_in(today)), "retention_days": model.retention_days,
        "trains_on_data": model.trains_on_data, "compliance": sorted(model.compliance or ()),
    }  # fmt: skip


def _may(row: dict[str, Any]) -> str:
    """The class it may receive today, and until when that holds; an approval that has run out is said too."""
    if (approved := row["approved"]) is None:
        return str(row["may_receive"])
    if row["may_receive"] == "public":
        return f"public (approval ended {approved['until']})"
    return f"{row['may_receive']} until {approved['until']} ({approved['by']}, {approved['contract']})"
