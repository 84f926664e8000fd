"""What the scanner finds and what it finds by mistake: `python -m benchmarks.recall`.

Recall on examples made at run time, plain and disguised, and on presidio-research's labelled sentences where that
folder is given. False alarms on everyday texts: a request counts once, and only where its class rises above internal.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine, ordinary
from benchmarks.disguises import DISGUISES, GOALS
from benchmarks.examples import EXAMPLES, Example, ip6
from benchmarks.goals import Goal
from router.commands.context import console, table
from router.scanner import rules
from router.scanner.reading import texts
from router.scanner.scanner import Scanner
from serving.catalogue import DataClass, Privacy

Search = Callable[[Sequence[str]], Counter[str]]
"""Messages of one request to what was found in them: how often each kind."""
DISGUISED = (
    "email", "phone", "address", "card", "iban", "bic", "passport", "birth", "ip", "mac", "medical_record",
    "medical_insurance", "national_id_us", "national_id_gb", "national_id_fr", "national_id_de", "national_id_es",
    "national_id_it", "national_id_br", "credential_aws", "credential_github", "credential_openai", "credential_slack",
    "credential_stripe", "credential_private_key", "credential_jwt", "credential_connection_string",
    "credential_assignment",
)  # fmt: skip
"""The kinds that are disguised; all of them are looked for plain."""
ENTITIES: Mapping[str, tuple[str, ...]] = {
    "CREDIT_CARD": ("card",), "EMAIL_ADDRESS": ("email",), "IBAN_CODE": ("iban",), "IP_ADDRESS": ("ip",),
    "PHONE_NUMBER": ("phone",), "US_SSN": ("national_id_us",), "ADDRESS": ("address",), "STREET_ADDRESS": ("address",),
    "ZIP_CODE": ("address",), "DATE_TIME": ("birth",), "PERSON": (), "LOCATION": (), "GPE": (), "ORGANIZATION": (),
    "NRP": (), "TITLE": (), "AGE": (), "DOMAIN_NAME": (),
}  # fmt: skip
"""What presidio-research calls a kind, and what it is here; nothing stands for what no kind looks for."""
UNREAD = "unread"
"""What was not searched to its end: it stays here, so it counts as an alarm, and never as something found."""
MOST_ALARMS = {ordinary.SMALL: 0.01, ordinary.LARGE: 0.05}


class Share(NamedTuple):
    """So many of so many."""

    name: str
    found: int
    of: int

    @property
    def share(self) -> float:
        return self.found / self.of if self.of else 0.0


def searching(scanner: Scanner) -> Search:
    """The scanner as a function."""

    def search(messages: Sequence[str]) -> Counter[str]:
        body = {"model": "auto", "messages": [{"role": "user", "content": message} for message in messages]}
        found: Counter[str] = Counter()
        searched = scanner.search(texts(body))
        for one in searched.found:
            found[one.kind] += one.count
        if searched.unread:
            found[UNREAD] += 1
        return found

    return search


def group(kind: str) -> str:
    """Two countries' numbers and two makers' tokens can look alike: either counts."""
    return kind.split("_")[0] if kind.startswith(("credential_", "national_", "medical_")) else kind


def recall(search: Search, kind: str, disguise: str, samples: int, seed: int) -> Share:
    """How many examples of one kind are found in one disguise."""
    chance = random.Random(f"{kind} {disguise} {seed}")
    found = 0
    for _ in range(samples):
        example = _example(kind, chance)
        kinds = search(DISGUISES[disguise](example, chance))
        found += any(group(one) == group(kind) for one in kinds)
    return Share(kind, found, samples)


def _example(kind: str, chance: random.Random) -> Example:
    if kind == "ip" and chance.random() < 0.3:
        return ip6(chance)
    return EXAMPLES[kind](chance)


def disguised(search: Search, samples: int, seed: int) -> dict[str, list[Share]]:
    """By disguise: every kind of the set. Plain: every kind there is."""
    return {
        name: [recall(search, kind, name, samples, seed) for kind in (EXAMPLES if name == "plain" else DISGUISED)]
        for name in DISGUISES
    }


def presidio(search: Search, folder: Path, most: int | None = None) -> dict[str, dict[str, int]]:
    """By entity: sentences that hold it, those where its kind was found, and those where it was found without one."""
    counts: dict[str, Counter[str]] = {entity: Counter() for entity in ENTITIES}
    for row in _rows(folder, most):
        entities = {span["entity_type"] for span in row["spans"]}
        kinds = search([row["text"]])
        for entity, ours in ENTITIES.items():
            hit = any(kind in kinds for kind in ours)
            if entity in entities:
                counts[entity].update(sentences=1, found=hit)
            elif hit and not any(set(ENTITIES.get(other, ())) & set(ours) for other in entities):
                counts[entity].update(mistaken=1)
    return {entity: {name: one[name] for name in ("sentences", "found", "mistaken")} for entity, one in counts.items()}


def _rows(folder: Path, most: int | None) -> Iterable[dict[str, Any]]:
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt") as lines:
            for number, line in enumerate(lines):
                if most is not None and number >= most:
                    break
                yield json.loads(line)


def alarms(
    search: Search, effects: Mapping[str, DataClass], most: Mapping[int, int], seed: int
) -> list[dict[str, Any]]:
    """By sort of text and size of a request: how many rise above internal, and what was seen in them."""
    rows = []
    for sort, text in ordinary.texts(seed).items():
        for size, count in most.items():
            causes: Counter[str] = Counter()
            pieces = ordinary.requests(text, size, count, seed)
            raised = 0
            for piece in pieces:
                high = [kind for kind in search([piece]) if effects[kind] > DataClass.internal]
                causes.update(high)
                raised += bool(high)
            rows.append({"sort": sort, "size": size, "requests": len(pieces), "raised": raised, "causes": dict(causes)})
    return rows


def goals(result: Mapping[str, Any]) -> list[Goal]:
    """What was wanted, met or missed."""
    made = []
    for name, wanted in GOALS.items():
        rows = result["disguises"][name]
        share = sum(row["found"] for row in rows) / max(1, sum(row["of"] for row in rows))
        said = f"{share:.1%}"
        made.append(Goal(f"recall, {name}", "reported" if wanted is None else f"≥ {wanted:.0%}", share, said,
                         None if wanted is None else share >= wanted))  # fmt: skip
    for size, most in MOST_ALARMS.items():
        rows = [row for row in result["alarms"] if row["size"] == size]
        for row in rows:
            share = row["raised"] / row["requests"] if row["requests"] else None
            said = "-" if share is None else f"{share:.2%} of {row['requests']}"
            made.append(Goal(f"false alarms, {row['sort']}, {size // 1024} KB", f"≤ {most:.0%}", share, said,
                             None if share is None else share <= most))  # fmt: skip
    return made


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All of it, as it is written down."""
    began = time.monotonic()
    looked_for = rules.of(Privacy())
    effects = {UNREAD: DataClass.private, **{kind.name: kind.effect for kind in looked_for.kinds}}
    with tempfile.TemporaryDirectory() as folder:
        search = searching(Scanner(looked_for, Path(folder)))
        shares = disguised(search, options.samples, options.seed)
        labelled = presidio(search, options.presidio) if options.presidio else {}
        most = {ordinary.SMALL: options.requests, ordinary.LARGE: max(1, options.requests // 10)}
        raised = alarms(search, effects, most, options.seed)
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "samples": options.samples,
        "disguises": {
            name: [{"kind": s.name, "found": s.found, "of": s.of} for s in rows] for name, rows in shares.items()
        },
        "presidio": labelled,
        "alarms": raised,
        "took_s": round(time.monotonic() - began, 1),
    }
    result["goals"] = [vars_of(goal) for goal in goals(result)]
    return result


def vars_of(goal: Goal) -> dict[str, Any]:
    return {"name": goal.name, "wanted": goal.wanted, "value": goal.value, "said": goal.said, "met": goal.met}


def show(result: Mapping[str, Any]) -> None:
    """The goals, what is missed by kind, and the labelled sentences."""
    out = console()
    words = {True: "met", False: "MISSED", None: "reported"}
    rows = table("goal", "wanted", "measured", "")
    for goal in result["goals"]:
        rows.add_row(goal["name"], goal["wanted"], goal["said"], words[goal["met"]])
    out.print(rows)
    rows = table("kind", "disguise", "found", "of", whole=2)
    for name, shares in result["disguises"].items():
        for share in shares:
            if share["found"] < share["of"] and GOALS[name] is not None:
                rows.add_row(share["kind"], name, str(share["found"]), str(share["of"]))
    out.print(rows)
    rows = table("labelled sentences", "kind here", "with it", "found", "recall", "found without it")
    for entity, one in result["presidio"].items():
        share = f"{one['found'] / one['sentences']:.1%}" if one["sentences"] else "-"
        ours = ", ".join(ENTITIES[entity]) or "none"
        rows.add_row(entity, ours, str(one["sentences"]), str(one["found"]), share, str(one["mistaken"]))
    if result["presidio"]:
        out.print(rows)
    for row in result["alarms"]:
        if row["causes"]:
            out.print(f"{row['sort']}, {row['size'] // 1024} KB: {row['causes']}")
    out.print(f"took {result['took_s']:.0f} s")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recall", description=__doc__)
    parser.add_argument("--presidio", type=Path, help="folder with presidio-research's sentences, *.jsonl.gz")
    parser.add_argument("--samples", type=int, default=40, help="examples of each kind in each disguise")
    parser.add_argument("--requests", type=int, default=1000, help="everyday requests of each sort at 4 KB")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=machine.RESULTS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write. Returns 1 where a goal is missed."""
    options = _options(arguments)
    if options.presidio and not options.presidio.is_dir():
        print(f"benchmarks.recall: {options.presidio} is no folder", file=sys.stderr)
        return 2
    result = run(options)
    show(result)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"recall-{result['machine']['date']}-{result['machine']['cores']}cpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if any(goal["met"] is False for goal in result["goals"]) else 0


if __name__ == "__main__":
    sys.exit(main())
