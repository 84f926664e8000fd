"""`python -m benchmarks.overhead`: what a request costs on its way through Headgate, beside other gateways.

nginx, Headgate and whichever peers are installed (smg, LiteLLM) stand in front of one fixed upstream, in one run. The
figure is CPU time of the gateway's own processes per request and per chunk of a stream: on a machine that is shared and
noisy it is the one that holds still. The goals of the data plane are held against it at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    charts,
    closed,
    cpu,
    kept,
    machine,
    memory,
    nginx,
    overload,
    peers,
    profiling,
    report,
    rounds,
)
from benchmarks.figures import Case, figures, first_tokens
from benchmarks.gateways import SEARCHING, Gateway, Upstream, direct, of_headgate, of_nginx, searching, upstream
from benchmarks.goals import MANY, ONE, STREAMS, goals, missed
from benchmarks.installation import Installation, Stop, own
from benchmarks.program import published, say
from serving.probe import ProbeError

WARM_S = 1.0
IDLE_S = 3.0
PROFILE_S = 6.0


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of each round of whole requests."""
    streams: int
    """One after the other on each connection, in each round."""
    first_rounds: int
    hold_s: float
    """How long idle streams are held: a full run waits for the keep-alive comment at 15 s."""
    runs: int
    run_s: float
    overload_s: float


FULL = Plan(rounds=4, seconds=3.0, streams=6, first_rounds=3, hold_s=17.0, runs=5, run_s=4.0, overload_s=10.0)
QUICK = Plan(rounds=2, seconds=1.5, streams=3, first_rounds=1, hold_s=2.0, runs=2, run_s=2.5, overload_s=4.0)


def idle(headgate: Installation) -> dict[str, float]:
    """CPU milliseconds a second of each part while nothing is asked."""
    parts = headgate.processes()
    before = cpu.seconds(parts)
    time.sleep(IDLE_S)
    found: dict[str, float] = {}
    for pid, spent in cpu.between(before, cpu.seconds(parts)).items():
        found[parts[pid]] = found.get(parts[pid], 0.0) + spent / IDLE_S * 1000
    return found


def accounted(headgate: Installation) -> int | None:
    """Requests that the router has ended and written down, by its own metrics."""
    try:
        text = headgate.metrics()
    except ProbeError:
        return None
    return int(sum(float(n) for n in re.findall(r"^headgate_requests_total\{[^}]*\} (\S+)$", text, re.MULTILINE)))


def _since(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it is written to JSON. Raises Stop."""
    if options.install_peers:
        peers.install(options.peers_folder, say)
    began, plan = time.monotonic(), QUICK if options.quick else FULL
    result = {
        "kind": "overhead", "machine": machine.describe(), "quick": options.quick,
        "load": "wrk" if closed.has_wrk() else "own client", **dataclasses.asdict(plan),
        "upstream": {n: getattr(options, n) for n in ("size", "chunks", "chunk_size", "pause_ms")},
        **gateways(options, plan),
    }  # fmt: skip
    if options.overload:
        result["overload"] = attempted(lambda: overload.measured(plan.overload_s, say))
    if options.vllm:
        result["vllm"] = attempted(lambda: kept.measured(plan.runs, plan.run_s, say))
    return {**result, "goals": [dataclasses.asdict(goal) for goal in goals(result)], "took_s": time.monotonic() - began}


def attempted(measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is measured, or why it could not be: minutes of other measurements are not thrown away for it."""
    try:
        return measured()
    except (Stop, ProbeError, OSError) as stopped:
        say(f"could not be measured: {stopped}")
        return {"failed": str(stopped)}


def gateways(options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """What is measured of gateways in front of the fixed upstream. Raises Stop."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hg-bench-")))
        words = [f"--{n.replace('_', '-')}={getattr(options, n)}" for n in ("size", "chunks", "chunk_size", "pause_ms")]
        behind = stack.enter_context(upstream(*words))
        front = stack.enter_context(nginx.running(behind.port, folder))
        headgate = stack.enter_context(own("--attach", behind.url))
        mine = of_headgate(headgate)
        there, absent = started(stack, beside(options.peers_folder, behind, folder))
        targets = [direct(behind.port), of_nginx(front), mine, *there]
        cases = [Case(ONE, 1), Case(MANY, 32), Case(STREAMS, 32, plan.streams, options.chunks + 2)]
        for target in targets:
            say(f"warming up {target.name}")
            rounds.load(cases[1], target, WARM_S, folder)
        resting, before = idle(headgate), accounted(headgate)
        say("memory: idle streams")
        # The comment that Headgate sends meanwhile is its own affair.
        held = [memory.measured(t, plan.hold_s if t is mine else min(plan.hold_s, 3.0)) for t in targets[1:]]
        say("rounds: CPU")
        readings = list(rounds.cpu_rounds(cases, targets, plan.rounds, plan.seconds, folder))
        say("rounds: first token")
        firsts = list(rounds.first_token_rounds(cases[2], targets, plan.first_rounds, behind.pid))
        sent = sum(r.done.requests for r in [*readings, *firsts] if r.target == "headgate")
        written = _since(before, accounted(headgate))
        resident = {part: cpu.resident_mb(pid) for pid, part in headgate.processes().items()}
        found = {
            "gateways": {t.name: t.version for t in targets if t.version}, "absent": absent,
            "figures": [dataclasses.asdict(f) for f in figures(cases, readings)],
            "first_token": [dataclasses.asdict(f) for f in
                            first_tokens(firsts, {t.name: rounds.at_once(cases[2], t) for t in targets})],
            "apart": len(cpu.cores()) > 1, "memory": memory.described(held), "idle_cpu_ms_per_s": resting,
            "resident_mb": resident, "answered_through_headgate": sent, "held_open": mine.streams,
            "accounted_for": written, "readings": [dataclasses.asdict(r) for r in [*readings, *firsts]],
        }  # fmt: skip
        # A missed goal without a profile would say that there is a problem, and not where.
        if options.profile or missed(goals(found)):
            found["profile"] = profiles(cases, mine, folder, options.peers_folder)
        return found


Ways = Mapping[str, contextlib.AbstractContextManager[Gateway]]
"""How each of several gateways is started, by name."""


def beside(peers_folder: Path, behind: Upstream, scratch: Path) -> Ways:
    """What is measured beside Headgate, if it can be started."""
    found = {peer.name: peers.running(peer, peers_folder, behind.port, scratch) for peer in peers.PEERS}
    return {SEARCHING: searching(behind, scratch), **found}


def started(stack: contextlib.ExitStack, ways: Ways) -> tuple[list[Gateway], dict[str, str]]:
    """Those that could be started, and why the others are left out."""
    there, absent = [], {}
    for name, way in ways.items():
        try:
            there.append(stack.enter_context(way))
        except (Stop, ProbeError, OSError) as stopped:
            absent[name] = str(stopped)
            say(str(stopped))
    return there, absent


def profiles(cases: Sequence[Case], target: Gateway, folder: Path, peers_folder: Path) -> dict[str, Any]:
    """A profile of the router under each kind of load."""
    (router,) = [pid for pid, part in target.processes().items() if part == "router"][:1]
    found = {}
    for case in cases:
        say(f"profile: {case.name}")
        more = dataclasses.replace(case, streams=2 + round(PROFILE_S * 2) if case.streams else 0)

        def work(case: Case = more) -> object:
            return rounds.load(case, target, PROFILE_S + 2, folder)

        found[case.name] = profiling.profile(router, work, PROFILE_S, peers_folder)
    return found


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, no good figures")
    parser.add_argument("--vllm", action="store_true", help="also a real vLLM: how much of its throughput is kept")
    parser.add_argument("--overload", action="store_true", help="also ten times what an upstream can do")
    parser.add_argument("--profile", action="store_true", help="also where no goal is missed")
    parser.add_argument("--install-peers", action="store_true", help="make the environments of smg, LiteLLM and py-spy")
    parser.add_argument("--peers-folder", type=Path, default=peers.default_folder(), help="where they lie")
    parser.add_argument("--size", type=int, default=330, help="bytes of an answer that is no stream")
    parser.add_argument("--chunks", type=int, default=100, help="chunks of a stream")
    parser.add_argument("--chunk-size", type=int, default=190, help="bytes of a chunk")
    parser.add_argument("--pause-ms", type=float, default=5.0, help="between two chunks")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder for the JSON and the picture")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write and draw. Returns 1 where it cannot; a goal that is missed is a result and no failure."""
    options = _options(arguments)
    return 0 if published("overhead", lambda: run(options), report.show, charts.overhead, options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
