"""What is left of an upstream's capacity when ten times as much is asked of it, and how long what is admitted takes.

The upstream answers 200 requests a second and no more: 20 at once, a tenth of a second each; 20 wait, the rest it
refuses as vLLM does. Requests come as an open loop, so nobody waits for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import uvloop

from benchmarks import cpu, wire
from benchmarks.gateways import Gateway, of_headgate, upstream
from benchmarks.installation import own
from benchmarks.openloop import Kind, OpenLoop, Sent
from benchmarks.samples import BEHIND_S, quantile

SLOTS, SERVICE_MS, QUEUE = 20, 100, 20
CAPACITY = SLOTS * 1000 / SERVICE_MS
TIMES = 10
PATIENCE_S = 5.0
"""An answer that takes longer is of no use to who asked, and does not count."""


def measured(seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Start an upstream and a Headgate for it, ask once as much as it can do and ten times as much. Raises Stop."""
    words = ("--slots", str(SLOTS), "--service-ms", str(SERVICE_MS), "--queue", str(QUEUE))
    with upstream(*words) as behind:
        site = {"attach": [{"url": behind.url, "limit": SLOTS}]}
        with own(site=site) as headgate:
            target = of_headgate(headgate)
            pids = [pid for pid, part in target.processes().items() if part == "router"]
            _offered(target, CAPACITY / 2, 2.0)
            say(f"overload: {CAPACITY / 2:.0f} requests a second, then {CAPACITY:.0f}, then {CAPACITY * TIMES:.0f}")
            # A generator that waits for its turn on the core would not ask ten times as much.
            with cpu.apart(target.pids, [behind.pid]):
                below = _offered(target, CAPACITY / 2, seconds)
                peak = _offered(target, CAPACITY, seconds)
                before = cpu.total_mb(pids)
                over = _offered(target, CAPACITY * TIMES, seconds)
                after = cpu.total_mb(pids)
    return {
        "capacity_per_s": CAPACITY, "patience_s": PATIENCE_S, "below": below, "peak": peak, "over": over,
        "ratio": over["good_per_s"] / peak["good_per_s"] if peak["good_per_s"] else None,
        "slower": slower(below, over), "router_mb_before": before, "router_mb_after": after,
    }  # fmt: skip


def slower(below: Mapping[str, Any], over: Mapping[str, Any]) -> float | None:
    """How many times as long what was admitted took at its slowest, beside the slowest of half the capacity. Pure."""
    before, after = below["good_p99_s"], over["good_p99_s"]
    return after / before if before and after is not None else None


def _offered(target: Gateway, rate: float, seconds: float) -> dict[str, Any]:
    kinds = [Kind(wire.place(target.asking()))]
    return said(uvloop.run(OpenLoop(kinds, rate).run(seconds)), seconds)


def said(sent: Sequence[Sent], seconds: float) -> dict[str, Any]:
    """What came of it, counted by when requests were due: the first fifth fills the queue and is left out. Pure."""
    begin = min(s.due for s in sent) + seconds / 5
    counted = [s for s in sent if s.due >= begin]
    good = [s for s in counted if s.heard and s.heard.good and s.heard.ended - s.due <= PATIENCE_S]
    refused = [s for s in counted if s.heard and s.heard.status in (429, 503)]
    took = [s.heard.ended - s.due for s in good if s.heard]
    late = [s.heard.sent - s.due for s in counted if s.heard]
    slow = quantile(late, 0.9)
    return {
        "asked": len(counted), "good": len(good), "good_per_s": len(good) / (seconds * 0.8),
        "good_p50_s": quantile(took, 0.5), "good_p99_s": quantile(took, 0.99),
        "refused": len(refused), "other": len(counted) - len(good) - len(refused),
        "refusal_p50_s": quantile([s.heard.ended - s.heard.sent for s in refused if s.heard], 0.5),
        "refusal_p99_s": quantile([s.heard.ended - s.heard.sent for s in refused if s.heard], 0.99),
        "late_p99_s": quantile(late, 0.99), "behind": slow is None or slow > BEHIND_S,
    }  # fmt: skip
