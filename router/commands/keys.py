"""`keys create|set|list|rotate|revoke|log`: who may ask, and what class of data their requests carry."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any

import typer

from router.commands.context import (
    ConfigOption,
    Context,
    JsonOption,
    Stop,
    console,
    open_context,
    open_home,
    operator,
    plain,
    say_json,
    table,
)  # fmt: skip
from router.commands.keyoptions import (
    BudgetOption,
    ClassOption,
    DeclassifyOption,
    EscalateOption,
    ExpiresOption,
    LanesOption,
    LatencyOption,
    MediaOption,
    RequestsOption,
    RequiresOption,
    SubstituteOption,
    TokensOption,
    changes,
    duration,
    scopes,
    team_name,
)
from router.ledger.changed import Change
from router.ledger.changed import read as read_changes
from router.ledger.keys import SCOPES, Key, KeyBook, KeyError_, well_formed
from serving.catalogue import LANES, DataClass
from serving.home import Home

app = typer.Typer(no_args_is_help=True, help="API keys: who may ask, and what class of data they send.")

NEAR_S = 2 * 86400.0
NO_FIRST_KEY = "there is no first key"


@app.command()
def create(
    team: Annotated[str, typer.Option(help="Whose requests these are.")],
    data_class: ClassOption = None,
    lanes: LanesOption = None,
    budget: BudgetOption = None,
    substitute: SubstituteOption = None,
    escalate: EscalateOption = None,
    expires: ExpiresOption = None,
    requests: RequestsOption = None,
    tokens: TokensOption = None,
    media: MediaOption = None,
    requires: RequiresOption = None,
    declassify: DeclassifyOption = None,
    latency: LatencyOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Make a key and show it once.

    Example: headgate keys create --team search --data-class public
    """
    changed = changes(data_class, lanes, budget, substitute, escalate, expires, requests, tokens, media=media,
                      requires=requires, declassify=declassify, latency=latency)  # fmt: skip
    context = open_context(config)
    chosen = changed.pop("data_class", context.found.site.keys.data_class)
    if "scopes" in changed:
        changed["scopes"] = scopes((), changed["scopes"])
    with _book(context.home) as book:
        key, text = book.create(team_name(team), chosen, context.found.site.keys, **changed)
    if as_json:
        say_json(_json(key) | {"key": text})
        return
    typer.echo(text)
    console().print(
        f"id {key.id}, team {key.team}, data class {key.data_class.name}, lanes {','.join(sorted(key.lanes))}. "
        "It is shown this once; the ledger keeps only a keyed hash.",
        soft_wrap=True,
    )


@app.command("set")
def change(
    key: Annotated[str, typer.Argument(help="Its id, see: headgate keys list")],
    data_class: ClassOption = None,
    lanes: LanesOption = None,
    budget: BudgetOption = None,
    substitute: SubstituteOption = None,
    escalate: EscalateOption = None,
    expires: ExpiresOption = None,
    requests: RequestsOption = None,
    tokens: TokensOption = None,
    media: MediaOption = None,
    requires: RequiresOption = None,
    declassify: DeclassifyOption = None,
    latency: LatencyOption = None,
) -> None:
    """Change what a key may do; a running router knows within a second.

    Example: headgate keys set KEY --data-class public --budget 20
    """
    changed = changes(data_class, lanes, budget, substitute, escalate, expires, requests, tokens, media=media,
                      requires=requires, declassify=declassify, latency=latency)  # fmt: skip
    if not changed:
        raise Stop("nothing to change; see: headgate keys set --help")
    with _book(open_home()) as book:
        if "scopes" in changed:
            changed["scopes"] = scopes(book.find(key_id(key)).scopes, changed["scopes"])
        found = book.set(key_id(key), **changed)
    console().print(
        f"{found.id}: team {found.team}, data class {found.data_class.name}, lanes {','.join(sorted(found.lanes))}, "
        f"budget {_budget(found)}, a minute {_a_minute(found)}, {_may(found)}{_state(found)}",
        soft_wrap=True,
    )


@app.command("list")
def show(as_json: JsonOption = False) -> None:
    """List the keys; the keys themselves are known to their holders only.

    Example: headgate keys list --json
    """
    with _book(open_home()) as book:
        keys = book.list()
    if as_json:
        say_json([_json(key) for key in keys])
        return
    rows = table("id", "ends in", "team", "data class", "lanes", "budget", "a minute", "state", whole=2)
    for key in keys:
        lanes = "all" if key.lanes == set(LANES) else ", ".join(sorted(key.lanes))
        state = f"{_may(key)}{_state(key)}"
        rows.add_row(key.id, key.last4, key.team, key.data_class.name, lanes, _budget(key), _a_minute(key), state)
    console().print(rows if keys else "There are no keys yet; make one with: headgate keys create --team NAME")


@app.command()
def rotate(
    key: Annotated[str, typer.Argument(help="Its id.")],
    overlap: Annotated[str, typer.Option(help="How long the old key still works, e.g. 24h.")] = "24h",
    as_json: JsonOption = False,
) -> None:
    """Make a new key with the same settings; the old one works a while longer.

    Example: headgate keys rotate KEY --overlap 1h
    """
    seconds, home = duration("--overlap", overlap), open_home()
    with _book(home) as book:
        made, text = book.rotate(key_id(key), seconds)
    first = key_id(key) == well_formed(_first_text(home))
    if first:
        _write_first(home, text)
    if as_json:
        say_json(_json(made) | {"key": text})
        return
    typer.echo(text)
    console().print(f"id {made.id} takes the place of {key_id(key)}, which works for {overlap} more.")
    if first:
        console().print("It was the first key: `up` and `chat` use the new one from now on.")


@app.command()
def revoke(key: Annotated[str, typer.Argument(help="Its id.")]) -> None:
    """End a key now; a running router refuses it within a second.

    Example: headgate keys revoke KEY
    """
    with _book(open_home()) as book:
        book.revoke(key_id(key))
    console().print(f"{key_id(key)} is revoked.")


@app.command("log")
def changed(
    key: Annotated[str, typer.Argument(help="Its id; without one, those of all keys.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show who made or changed a key, when, and how, out of the ledger's chain.

    Example: headgate keys log KEY
    """
    found = read_changes(open_home().ledger, key_id(key))
    if as_json:
        say_json([change._asdict() for change in found])
        return
    rows = table("when", "key", "what", "by", "settings", whole=2)
    for one in found:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.at))
        what = f"{one.what} in place of {one.instead}" if one.instead else one.what
        rows.add_row(when, one.key, what, plain(one.user), plain(_differing(one)))
    console().print(rows if found else "Nothing was written down of it; earlier releases kept no record of this.")


def _differing(one: Change) -> str:
    """What a change made different; of a new key, what it was given."""
    said = [
        f"{name}: {_setting(one.old[name])} → {_setting(new)}" if name in one.old else f"{name}: {_setting(new)}"
        for name, new in one.new.items()
        if name in one.old or new not in (None, [], False)
    ]
    return "; ".join(said).replace("_", " ")


def _setting(value: Any) -> str:
    if isinstance(value, float) and value > 1e9:  # a moment
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
    if isinstance(value, float):
        return _digits(value)
    return (",".join(value) or "none") if isinstance(value, list) else "none" if value is None else str(value)


def first_key(context: Context) -> tuple[Key, str, str]:
    """The key that `up` prints and `chat` uses, kept in a file only its owner can read.

    Made where there is none that works; the third text then says why, "" where nothing was made.
    """
    with _book(context.home) as book:
        text = _first_text(context.home)
        key, why = _standing(book, text)
        if key is not None and not why:
            return key, text, ""
        key, text = book.create("first", context.found.site.keys.data_class, context.found.site.keys)
        _write_first(context.home, text)
        return key, text, why


def existing_first_key(home: Home) -> str:
    """The text of the first key, as long as it works; none is made: who revoked it meant it. Raises Stop."""
    text = _first_text(home)
    with _book(home) as book:
        _, why = _standing(book, text)
    if why:
        raise Stop(f"{why}; make one with: headgate keys create --team NAME, and give it with --key")
    return text


def _standing(book: KeyBook, text: str) -> tuple[Key | None, str]:
    """The first key as the ledger has it, and why it does not work, "" where it does."""
    try:
        key = book.find(well_formed(text) or "")
    except KeyError_:
        return None, NO_FIRST_KEY
    if key.works(time.time()):
        return key, ""
    return key, f"the first key {'is revoked' if key.revoked is not None else 'has ended'}"


def _first_text(home: Home) -> str:
    try:
        return (home.secrets / "first-key").read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""


def _write_first(home: Home, text: str) -> None:
    """Put the first key's text into its file, all of it or nothing. Raises OSError."""
    path = home.secrets / "first-key"
    draft = path.with_name(f".first-key.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        draft.touch(mode=0o600)
        draft.write_text(text)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _book(home: Home) -> Iterator[KeyBook]:
    book = KeyBook(home.ledger, home.secret("pepper"), operator())
    try:
        yield book
    except KeyError_ as wrong:
        raise Stop(str(wrong)) from wrong
    except sqlite3.Error as broken:
        raise Stop(f"the keys in {home.ledger} cannot be changed: {broken}; see: headgate doctor") from broken
    finally:
        book.close()


def all_keys(context: Context) -> list[Key]:
    """Every key, for commands that count who may use what."""
    with _book(context.home) as book:
        return book.list()


def key_id(text: str) -> str:
    """An id, also where somebody pastes the whole key: no part of its secret is ever printed."""
    return well_formed(text) or (text.split("_")[1] if re.match(r"hg_[^_]+_", text) else text)


def _json(key: Key) -> dict[str, Any]:
    return {
        "id": key.id, "last4": key.last4, "team": key.team, "data_class": key.data_class.name,
        "lanes": sorted(key.lanes), "substitute": key.substitute, "scopes": sorted(key.scopes),
        "budget_usd": key.budget_usd, "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute, "media_class": key.media_class.name,
        "requires": sorted(key.requires), "latency": key.latency,
        "created": key.created, "expires": key.expires, "revoked": key.revoked, "state": _state(key),
    }  # fmt: skip


def _budget(key: Key) -> str:
    return "none" if key.budget_usd is None else f"${_digits(key.budget_usd)} a month"


def _digits(number: float) -> str:
    """A number in digits alone, however small or large."""
    return f"{Decimal(str(number)).normalize():f}"


def _a_minute(key: Key) -> str:
    """What it may use of a minute, for a person."""
    named = ((key.requests_per_minute, "requests"), (key.tokens_per_minute, "tokens"))
    return (
        ", ".join(f"{limit} {what.removesuffix('s') if limit == 1 else what}" for limit, what in named if limit)
        or "any"
    )


def _may(key: Key) -> str:
    """What a key may besides asking, what holds for its data besides its class, how its requests wait; nothing where
    all is as usual."""
    said = [f"may {scope}" for scope in SCOPES if scope in key.scopes]
    if key.media_class is not DataClass.private:
        said.append(f"media {key.media_class.name}")
    if key.requires:
        said.append(f"requires {' and '.join(sorted(key.requires))}")
    if key.latency != "interactive":
        said.append(key.latency)
    return "".join(f"{each}, " for each in said)


def _state(key: Key) -> str:
    if key.revoked is not None:
        return "revoked"
    if key.expires is None:
        return "works"
    now = time.time()
    # The hour matters only where it is near.
    form = "%Y-%m-%d" if abs(key.expires - now) > NEAR_S else "%Y-%m-%d %H:%M"
    day = dt.datetime.fromtimestamp(key.expires).strftime(form)
    return f"works until {day}" if key.works(now) else f"ended {day}"
