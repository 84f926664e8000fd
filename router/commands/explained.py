"""What `headgate explain` says of a decision and of a record, in words for whoever answers for the data."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich.console import Console

from router.commands.codes import sentence
from router.commands.status import known, share
from router.decision.sensitivity import UNASKED

SOURCES = {"set": ", by the price that is set", "list": ", by list price", "gpu-hours": ", by GPU-hours"}
"""Where the price of an answer came from."""
SHOWN = 4
"""Models that are named where several are refused for the same reason."""


def show_decision(found: dict[str, Any], out: Console) -> None:
    """What was asked, what class its data has and why, who may answer, and why nobody else."""
    _line("asked", found["asked"], out)
    _show_class(found, out)
    order = ", then ".join(f"{c['model']} ({c['place']})" for c in found["order"]) or "nobody"
    _line("goes to", order, out)
    _line("reason", found["reason"], out)
    if found.get("trigger"):
        _line("trigger", found["trigger"], out)
    for candidate in found["order"]:
        _show_promises(candidate, out)
        _show_load(candidate, out)
        _show_expected(candidate, out)
    hold = "nothing (no price is known)" if found["hold_usd"] is None else f"${found['hold_usd']:.6f} at most"
    if found["order"]:
        _line("held", f"{hold}; at most {found['prompt_tokens_at_most']} prompt tokens", out)
    if found.get("dropped"):
        _line("dropped", ", ".join(found["dropped"]), out)
    if found.get("check"):
        _line("check", f"a whole answer is held against {found['check']}", out)
    for names, refusal in _alike(found["refusals"]):
        _line("not", f"{names} [{refusal['rule']}]: {refusal['reason']}", out)
        if refusal["remedy"] and refusal["rule"] not in ("other_lane", "other_model"):
            way = "" if refusal["remedy"].startswith("see: ") else "to change it: "
            _line("", f"{way}{refusal['remedy']}", out)


def _show_class(found: dict[str, Any], out: Console) -> None:
    """The class and everything that gave it one; records of earlier releases know but the one that counted."""
    _line("class", f"{found['data_class']}: {found['why_class']}", out)
    if found.get("declassified"):
        _line("lowered", f"by its caller, for the reason {found['declassified']}; what stood against it:", out)
    for source in found.get("classes", ()):
        if source != found["why_class"]:
            _line("", source if found.get("declassified") else f"also: {source}", out)
    if marks := found.get("marks"):
        _line("entries", f"{' '.join(marks)} (of the history; see: headgate privacy why ID)", out)
    if "unsearched" in found:
        _line("searched", _searched(found), out)
    if found.get("requires"):
        _line("requires", ", ".join(found["requires"]), out)
    if found.get("latency") == "batch":
        _line("latency", "batch: it may wait for longer, and lets interactive requests go before it", out)


def _searched(found: dict[str, Any]) -> str:
    """Whether it was searched, and why not: what could not leave whatever was found in it is not searched first."""
    why = found["unsearched"]
    if why != UNASKED:
        return f"no: {why}" if why else "every byte of it"
    barred = dict.fromkeys(one["model"] for one in found["refusals"] if one["rule"] == "data_class_not_cleared")
    alone = f"; its class alone ({found['why_class']}) keeps it from {_listed(barred)}" if barred else ""
    return f"no: {why}{alone}; what a search finds in a text: headgate privacy test FILE"


def _show_promises(candidate: dict[str, Any], out: Console) -> None:
    """What a hosted model was cleared for, and what its provider promises of the data."""
    if (cleared := candidate.get("cleared")) is not None:
        _line("cleared", f"{candidate['model']}: {promises(cleared)}", out)


def promises(cleared: dict[str, Any]) -> str:
    """Clearance, regions, retention, training and tags in one line; what nobody says is unknown."""
    said = [f"up to {cleared['clearance']} data"]
    if by := cleared.get("approved"):
        said[0] += f", approved by {by['by']} under {by['contract']} until {by['until']}"
    days, trains = cleared.get("retention_days"), cleared.get("trains_on_data")
    said.append(f"data in {', '.join(cleared.get('regions') or ()) or 'unknown regions'}")
    said.append("keeps it for an unknown time" if days is None else f"keeps it for {days:g} days")
    said.append("training on it unknown" if trains is None else "trains on it" if trains else "no training on it")
    said.append(f"tags {', '.join(cleared.get('compliance') or ()) or 'none'}")
    return "; ".join(said)


def _alike(refusals: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The refusals, those of one reason together: once for each reason, with the names of all that it holds for."""
    together: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for refusal in refusals:
        alike = (refusal["rule"], _unnamed(refusal, "reason", "each"), _unnamed(refusal, "remedy", "NAME"))
        together.setdefault(alike, []).append(refusal)
    found = []
    for (rule, reason, remedy), each in together.items():
        names = list(dict.fromkeys(refusal["model"] or "any" for refusal in each))
        if len(names) == 1:
            found += [(names[0], each[0])]
            continue
        found += [(_listed(names), {"rule": rule, "reason": reason, "remedy": remedy})]
    return found


def _listed(models: Iterable[str]) -> str:
    """Names of models, the first ones where they are many."""
    names = list(models)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _unnamed(refusal: dict[str, Any], field: str, put: str) -> str:
    """A sentence of a refusal with `put` in place of the name of model and endpoint."""
    names = sorted({refusal["endpoint"], refusal["model"]} - {""}, key=len, reverse=True)
    text: str = refusal[field]
    for name in names:
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", put, text)
    return text


def _show_load(candidate: dict[str, Any], out: Console) -> None:
    """What was known of a candidate's load when it was decided; records made before it was kept have none."""
    if "in_flight" not in candidate:
        return
    limit = f" of {candidate['limit']}" if candidate.get("limit") else ""
    said = [f"{candidate['in_flight']}{limit} in flight{', full' if candidate.get('full') else ''}"]
    if candidate["place"] == "local":
        said.append(f"running {known(candidate.get('running'))}")
        said.append(f"waiting {known(candidate.get('waiting'))}, KV {share(candidate.get('kv_use'))}")
    if cached := candidate.get("cached_bytes"):
        said.append(f"{known(cached)} bytes of this request in its cache, as expected")
    _line("load", f"{candidate['endpoint']}: {', '.join(said)}", out)
    for gpu in candidate.get("gpus") or []:
        trouble = [*(gpu.get("throttle") or []), *filter(None, [gpu.get("fault")])]
        free = gpu.get("memory_free_gb")
        room = "memory unknown" if free is None else f"{known(free)} GB free"
        _line("", ", ".join([f"GPU {gpu['index']}: busy {share(gpu.get('utilisation'))}", room, *trouble]), out)


def _show_expected(candidate: dict[str, Any], out: Console) -> None:
    """How full it was, and what it was expected to do, where somebody looked."""
    if (full := candidate.get("saturation")) is not None:
        _line("saturation", f"{candidate['endpoint']}: {full['value']:.2f} ({full['why']})", out)
    if (expected := candidate.get("predicted")) is not None:
        _line("predicted", f"{candidate['endpoint']}: {_timed(expected)}", out)


def _timed(found: dict[str, Any]) -> str:
    """Wait, first token and speed in one line; what is not known is left out."""
    wait, first, speed = found["wait_ms"], found["first_token_ms"], found["tokens_per_s"]
    told = [] if wait is None else [f"a wait of {wait:.0f} ms"]
    told += [] if first is None else [f"first token after {first:.0f} ms"]
    told += [] if speed is None else [f"{speed:.1f} tokens a second"]
    return ", ".join(told) or "nothing is known yet"


def show_record(found: dict[str, Any], out: Console) -> None:
    """A request that was made: its decision, how it went on and what it cost."""
    _line("request", found["request"], out)
    decided, told = "", set[str]()
    for event in found["events"]:
        if event["kind"] == "opened":
            _line("key", f"{event['key']} (team {event['team']}), {event['route']}", out)
            show_decision(event, out)
            decided, told = event.get("trigger", ""), {refusal["rule"] for refusal in event["refusals"]}
        elif event["kind"] == "closed":
            _show_closed(event, decided, told, out)
        elif event["kind"] == "sending":
            what = f"{event['bytes']} bytes for {event['model']}, as {event['data_class']}"
            _line("to the door", what, out)
        elif event["kind"] == "repeated":
            _line("key", f"{event['key']} (team {event['team']}), {event['route']}", out)
            _line("ended", f"given the answer to {event['first']} again, status {event['status']}, at no cost", out)
        elif event["kind"] == "released":
            _line("released", f"what was remembered of it ({event['mark']}), by {event['user']}", out)
        else:  # refused before there was anything to decide
            _line("key", f"{event['key']} (team {event['team']}), {event['route']}", out)
            _line("ended", f"{event['outcome']}, status {event['status']}: {event['error']}", out)
            _show_meaning(event, out)


def _show_closed(event: dict[str, Any], decided: str, told: Collection[str], out: Console) -> None:
    """`decided`: the trigger of the decision; another one showed only afterwards. `told`: rules that gave a reason."""
    if (queued := event.get("queued_ms")) is not None:
        _line("waited", f"{queued:.0f} ms in all for local room", out)
    if event.get("trigger", "") not in ("", decided):
        _line("trigger", event["trigger"], out)
    for attempt in event["attempts"]:
        detail = f": {attempt['detail']}" if attempt["detail"] else ""
        took = ", first byte after" if attempt["outcome"] == "answered" else " after"
        _line("tried", f"{attempt['endpoint']}: {attempt['outcome']}{took} {attempt['ms']:.0f} ms{detail}", out)
    if (met := event.get("met")) is not None:
        _line("met", _timed(met), out)
    if event.get("check"):
        _line("checked", event["check"], out)
    error = f": {event['error']}" if event.get("error") else ""
    _line("ended", f"{event['outcome']}, status {event['status']}, {event['total_ms']} ms{error}", out)
    by_door = {attempt["detail"].partition(":")[0] for attempt in event["attempts"]}
    if error and event["error"] not in {*told, *by_door}:
        _show_meaning(event, out)
    guess = " (estimated)" if event["estimated"] else ""
    prompt, output = (event[f] if event[f] is not None else "unknown" for f in ("prompt_tokens", "output_tokens"))
    if event["attempts"]:
        _line("tokens", f"{prompt} in, {output} out{guess}", out)
    source = SOURCES.get(event.get("price_source", ""), "")
    cost = "unpriced" if event["cost_usd"] is None else f"${event['cost_usd']:.6f}{source}{guess}"
    _line("cost", cost, out)


def _show_meaning(event: dict[str, Any], out: Console) -> None:
    """What its error code means, and what to do."""
    if meaning := sentence(event["error"], event.get("key") or "KEY"):
        _line("", meaning, out)


def _line(name: str, text: str, out: Console) -> None:
    out.print(f"{name:<10} {text}", soft_wrap=True)
