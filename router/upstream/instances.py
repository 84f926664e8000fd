"""serving's document as endpoints with their load and GPUs, and how each is reached. Pure: a document in, records out.

Its word alone opens no address, and a reading that cannot be true is None: unknown, never 0, never a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from router.records import Endpoint, Gpu
from router.upstream.address import Address
from router.upstream.inside import Inside
from serving.catalogue import ABILITIES, Ability, Catalogue, Model, Price

STALE_S = 15.0
"""Readings older than this are not believed. serving reads engines each second and GPUs each five."""
SLOWED = frozenset({"hardware slow-down", "hardware thermal", "software thermal", "power brake"})
"""What `serving/device.py` calls the reasons for held-down clocks that a GPU has not by anybody's choice."""
SLOWED_SHARE = 0.5
"""Of its places an endpoint keeps so many then: clocks fall to a half or less."""
SWAPS = ("start", "stop", "sleep", "wake")
"""What `serving/endpoint.py` counts of a model that runs by demand."""
MOST = 10**15
"""No count of requests, tokens, watts or gigabytes reaches this; more is a fault of the one who says it."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a local endpoint."""

    address: Address
    key_env: str = ""
    key_file: str = ""


@dataclass(frozen=True, slots=True)
class Instances:
    """What one document says."""

    models: Mapping[str, Model]
    """The catalogue's, and those that only serving knows."""
    endpoints: tuple[Endpoint, ...] = ()
    access: Mapping[str, Access] = field(default_factory=dict)
    """By the endpoint's name; only what may be reached."""
    gpus: tuple[Gpu, ...] = ()
    left_out: int = 0
    """Entries without a name of their own."""


def read(
    document: object, catalogue: Catalogue, inside: Inside, rate: Callable[[str], Price | None]
) -> Instances:  # fmt: skip
    """Read serving's document, entry by entry. Raises ValueError where it is none.

    `rate` gives the internal rate of a local model that no catalogue lists.
    """
    if not isinstance(document, dict) or document.get("version") != 1:
        raise ValueError("it speaks another version")
    if not isinstance(entries := document.get("instances"), list):
        raise ValueError("it gives no list of instances")
    models, gpus = dict(catalogue.models), _gpus(document)
    endpoints: dict[str, Endpoint] = {}
    access: dict[str, Access] = {}
    for found in entries:
        name = _name(found)
        if not name or name in endpoints:
            continue
        try:
            endpoint, reach = _endpoint(found, name, gpus), _access(found)
            if endpoint.model not in models:
                models[endpoint.model] = unlisted(
                    endpoint.model, endpoint.context, found.get("abilities"), rate(endpoint.model)
                )
        except (ValueError, TypeError) as odd:
            endpoints[name] = _failed(Endpoint(name, name, "", ""), f"serving's entry is wrong: {_line(odd)}")
            models.setdefault(name, unlisted(name, 0))
            continue
        endpoints[name] = _permitted(endpoint, reach, models[endpoint.model], inside)
        if reach is not None and endpoints[name] is endpoint:
            access[name] = reach
    return Instances(
        models, tuple(endpoints.values()), access, tuple(gpus.values()), left_out=len(entries) - len(endpoints)
    )


def unlisted(
    name: str, context: int, abilities: list[Ability] | None = None, price: Price | None = None
) -> Model:  # fmt: skip
    """The entry of a local model that no catalogue lists (the demo, an attached server): able until shown not to be.

    Raises ValueError (pydantic's, of several lines) for a name that no model can have.
    """
    context = context or 4096
    return Model(
        name=name, place="local", lanes=("private", "cheap"), context=context, output=min(1024, max(1, context // 4)),
        abilities=frozenset(ABILITIES if abilities is None else abilities), price=price,
    )  # fmt: skip


def unread(endpoint: Endpoint) -> Endpoint:
    """The endpoint without its readings, once they are too old to be believed."""
    stale = endpoint.stale or endpoint.running is not None
    return endpoint._replace(running=None, waiting=None, kv_use=None, preempted_s=None, gpus=(), stale=stale)


def filling(endpoint: Endpoint, in_flight: int) -> bool:
    """Whether a ready engine is between half full and full, so that the next request may be one too many."""
    here, most = (endpoint.running or 0) + (endpoint.waiting or 0), endpoint.places or endpoint.limit
    ours = in_flight / endpoint.limit if endpoint.limit else 0.0
    return endpoint.state == "ready" and 0.5 <= max(ours, here / most if most else 0.0, endpoint.kv_use or 0.0) < 1


def slowed(limit: int, gpus: tuple[Gpu, ...]) -> int:
    """How many requests it takes at once while the hardware holds its clocks down. A cap on power is no such thing:
    it is how a GPU is run."""
    if limit <= 0 or not any(SLOWED & set(gpu.throttle) for gpu in gpus):
        return limit
    return max(1, int(limit * SLOWED_SHARE))


def _permitted(endpoint: Endpoint, reach: Access | None, model: Model, inside: Inside) -> Endpoint:
    """The endpoint as it is where requests may be sent to it, else failed with the reason."""
    if model.place == "hosted":
        detail = f"{model.name} is the name of a hosted model; give the server another one with attach[].name"
        return _failed(endpoint, detail)
    if reach is not None and (refused := inside.refusal(reach.address)):
        # serving's own reason comes first, where it refused it too.
        return _failed(endpoint, endpoint.detail if endpoint.state == "failed" else refused)
    if reach is None and endpoint.state == "ready":
        return _failed(endpoint, "serving gives no address for it")
    return endpoint


def _endpoint(found: dict[str, Any], name: str, gpus: Mapping[str, Gpu]) -> Endpoint:
    """One entry. Raises ValueError where what it says decides about requests and cannot be read."""
    load = found.get("load")
    load = load if isinstance(load, dict) else {}
    asleep, used = load.get("asleep"), found.get("gpus")
    attached = bool(found.get("attached"))
    endpoint = Endpoint(
        name=name, model=_text(found, "model") or name, address=_text(found, "address"),
        state=_text(found, "state") or "unknown", detail=_text(found, "detail"), limit=_count(found, "limit"),
        running=_whole(load.get("running")), waiting=_whole(load.get("waiting")), kv_use=_number(load.get("kv_use"), 1),
        asleep=asleep if isinstance(asleep, bool) else None, attached=attached, context=_count(found, "context"),
        served=_text(found, "served"), prompt_tokens=_whole(load.get("prompt_tokens")),
        output_tokens=_whole(load.get("output_tokens")), restarts=None if attached else _whole(found.get("restarts")),
        gpus=tuple(gpus[u] for u in used if isinstance(u, str) and u in gpus) if isinstance(used, list) else (),
        prefix_queries=_whole(load.get("prefix_queries")), prefix_hits=_whole(load.get("prefix_hits")),
        preemptions=_whole(load.get("preemptions")), preempted_s=_number(load.get("preempted_s")),
        rejections=_whole(load.get("rejections")), kv_tokens=_whole(load.get("kv_tokens")) or None,
        gpu_memory_gb=_total(found.get("gpu_memory_gb")), ready_in_s=_number(found.get("ready_in_s")),
        swaps=_swaps(found.get("swaps")),
    )  # fmt: skip
    stale = (_number(load.get("age_s")) or 0) > STALE_S
    return unread(endpoint)._replace(gpus=endpoint.gpus) if stale else endpoint


def _access(found: dict[str, Any]) -> Access | None:
    """How it is reached; None where it gives no address. Raises ValueError."""
    if not (address := _text(found, "address")):
        return None
    return Access(Address.parse(address, _text(found, "ca_file")), _text(found, "key_env"), _text(found, "key_file"))


def _gpus(document: dict[str, Any]) -> dict[str, Gpu]:
    """The GPUs by UUID; none where the readings are too old."""
    entries = document.get("gpus")
    if not isinstance(entries, list) or (_number(document.get("gpus_age_s")) or 0) > STALE_S:
        return {}
    found: dict[str, Gpu] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        uuid, index = entry.get("uuid"), _whole(entry.get("index"))
        if not isinstance(uuid, str) or not uuid or index is None:
            continue
        total = _number(entry.get("memory_total_gb"))
        gpu = Gpu(
            uuid=uuid, index=index, name=_said(entry, "name"), fault=_said(entry, "fault"), memory_total_gb=total,
            memory_free_gb=_number(entry.get("memory_free_gb"), MOST if total is None else total),
            utilisation=_number(entry.get("utilisation"), 1), power_w=_number(entry.get("power_w")),
            temperature_c=_number(entry.get("temperature_c")),
            throttle=_texts(entry.get("throttle")),
            memory_used_gb=_number(entry.get("memory_used_gb"), MOST if total is None else total),
            memory_temperature_c=_number(entry.get("memory_temperature_c")), energy_j=_number(entry.get("energy_j")),
            ecc=_whole(entry.get("ecc")), xid=_whole(entry.get("xid")), recovery=_said(entry, "recovery") or None,
            warnings=_texts(entry.get("warnings")), others_gb=_number(entry.get("others_gb")),
        )  # fmt: skip
        found.setdefault(uuid, gpu)
    return found


def _failed(endpoint: Endpoint, detail: str) -> Endpoint:
    return endpoint._replace(state="failed", detail=detail)


def _name(found: object) -> str:
    """The name of serving's entry where it is one that a person can use, else ""."""
    name = found.get("name") if isinstance(found, dict) else None
    try:
        return unlisted(name, 0).name if isinstance(name, str) else ""
    except ValueError:
        return ""


def _text(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"its {key} is no text")
    return value or ""


def _count(found: dict[str, Any], key: str) -> int:
    if found.get(key) is None:
        return 0
    if (count := _whole(found[key])) is None:
        raise ValueError(f"its {key} is no count")
    return count


def _said(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    return value if isinstance(value, str) else ""


def _texts(value: object) -> tuple[str, ...]:
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def _total(value: object) -> float | None:
    """The sum of what stands by name; None where there is nothing, or one of it is unknown."""
    parts = [_number(one) for one in value.values()] if isinstance(value, dict) else []
    known = [one for one in parts if one is not None]
    return sum(known) if known and len(known) == len(parts) else None


def _swaps(value: object) -> tuple[tuple[str, int], ...]:
    found = [(how, _whole(value.get(how))) for how in SWAPS] if isinstance(value, dict) else []
    return tuple((how, count) for how, count in found if count is not None)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST else None


def _number(value: object, most: float = MOST) -> float | None:
    """The reading, or None where it is none or cannot be true; NaN is in no range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value <= most else None


def _line(odd: Exception) -> str:
    """What is wrong in one line; never the lines of pydantic's that repeat what it was given."""
    return "its model or its abilities are none that a model can have" if "\n" in str(odd) else str(odd)[:200]
