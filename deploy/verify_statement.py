"""Verifies an egress statement offline: `python3 verify_statement.py FOLDER [--key key.pem]`.

It shares no code with Headgate and needs Python 3.10 and `openssl` 3.0. It checks signature and chains, holds ledger
and book against each other permit by permit, and works out every sum that it prints. What was left out of all sources
alike, or lies outside of the excerpts, it cannot see. Exit code 0: verified, the counts agree; 2: verified, and the
statement says that they do not; 3: verified, and it says that nobody can tell; 1: not verified.
"""

import base64
import bisect
import collections
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

GONE = {"ended": "", "status": 0, "left": True, "connections": 1, "bytes_in": 0, "head_bytes_in": 0}
STAYED = {"not_recorded", "door_closed", "door_refused", "unreachable", "pool_full"}
GIVEN_UP = {"client_left", "stopped", "lost", "reset", "closed"}
RANKS = {"public": 0, "internal": 1, "private": 2, "secret": 3}
SAME = {name: name for name in ("key", "team", "provider", "model", "path", "policy")}
SAME.update(sha256="received_sha256", door="boot", data_class="claimed")  # the ledger's name, and the book's
GROUP, SUMS = ("provider", "host", "model", "rule", "data_class"), ("requests", "sendings", "bytes", "head_bytes")
EVENT = ("prev", "writer", "seq", "at", "kind", "request", "key", "cost", "body")
KERNEL = ("samples", "intervals", "frame_bytes", "explained", "unaccounted_bytes", "uncertain_bytes")
KINDS = ("twice", "only_book", "only_ledger", "differs", "not_cleared", "kernel_more", "kernel_less")
problems, breaks = [], []


def compare(name, mine, theirs):
    if mine != theirs:
        problems.append(f"{name}: the excerpts say {mine}, the statement {theirs}")


def fingerprint(pem):
    """SHA-256 of the key's 32 bytes. More in its file than one key could hide the one that verifies."""
    only = rb"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA([A-Za-z0-9+/]{43}=)\n-----END PUBLIC KEY-----\n*"
    if not (found := re.fullmatch(only, pem.read_bytes())):
        raise ValueError(f"{pem} is not one Ed25519 public key in PEM and nothing else")
    return hashlib.sha256(base64.b64decode(found[1])).hexdigest()


def records(folder, name, said):
    """Every record of an excerpt, held against its own hash and the record before it in its chain."""
    whole, last = hashlib.sha256(), {}
    with (folder / name).open("rb") as file:
        for number, raw in enumerate(file, 1):
            whole.update(raw)
            one, text = json.loads(raw), re.sub(rb'"hash":"[0-9a-f]{64}",', b"", raw, count=1)[:-1]
            before, last[one.get("writer")] = last.get(one.get("writer"), {"hash": one.get("prev")}), one
            if "writer" in one:
                text = json.dumps([one.get(each) for each in EVENT], separators=(",", ":"), ensure_ascii=False).encode()
            right = "prev" not in one or hashlib.sha256(text).hexdigest() == one["hash"]  # else it is there in short
            gap = "writer" in one and "seq" in before and one["seq"] != before["seq"] + 1
            if not right or gap or one.get("prev", before["hash"]) != before["hash"]:
                breaks.append(f"{name}, line {number}: changed, or something before it is")
            yield one
    compare(name, whole.hexdigest(), said["excerpts"][name]["sha256"])


def ledger(folder, said):
    """What was handed over, and how that ended, by request and permit."""
    handed, ended, hashes, asked = collections.defaultdict(list), {}, hashlib.sha256(), 0
    for one in records(folder, "ledger.jsonl", said):
        if said["since_at"] <= one["at"] < said["until_at"]:
            hashes.update(one["hash"].encode())
            asked += one["kind"] in ("opened", "refused", "repeated")
        body = json.loads(one.get("body", "{}"))
        if one["kind"] == "sending" and "body" in one:  # in short where it is of another time
            handed[one["request"], body["permit"]].append({n: {**one, **body}[n] for n in (*SAME, "at", "bytes")})
        elif one["kind"] == "closed":  # in short where everything was answered
            ended[one["request"], ""] = ("lost" if body.get("outcome") == "lost" else "answered", True)
            tries = [each for each in body.get("attempts", ()) if each.get("permit")]
            ended.update({(one["request"], each["permit"]): (each["outcome"], each["sent"]) for each in tries})
    compare("ledger", [asked, hashes.hexdigest()], [said["requests"], said["sources"]["ledger"]["sha256"]])
    return handed, ended


def book(folder, said):
    """What was sent, ended and refused, by request and permit; and each sending with its end, for the kernel."""
    found, going, passed = {"sending": {}, "ended": {}, "refused": {}}, {}, []
    for entry in records(folder, "book.jsonl", said):
        kind, permit = entry["kind"], entry.get("permit")
        if kind == "opened":
            passed += [(going.pop(one), entry["at"], GONE) for one in [*going]]
        known = kind in found and entry["boot"] not in said["not_reconciled"]["boots"]
        near = said["since_at"] - 3600 <= entry["at"] < said["until_at"] + 60
        if known and permit and (near or (kind == "ended" and permit in going)):
            entry = {n: entry[n] for n in entry.keys() - {"hash", "prev", "sent_sha256", "route", "requires", "found"}}
            found[kind].setdefault((entry["request"], permit), []).append(entry)
            if kind == "sending":
                going[permit] = entry
            elif kind == "ended" and permit in going:
                passed.append((going.pop(permit), entry["at"], entry))
    return [*found.values()], passed + [(one, float("inf"), GONE) for one in going.values()]


def judge(said, handed, outcomes, found, kinds):
    """Hold ledger and book against each other; the bytes that one of them alone has."""
    sums, who, alone = collections.Counter({((), name): 0 for name in SUMS}), set(), 0
    for case in {case for each in (handed, *found) for case in each}:
        ours, sent, end, refused = (each.get(case, []) for each in (handed, *found))
        if not said["since_at"] <= (*ours, *sent, *refused, *end)[0]["at"] < said["until_at"]:
            continue
        outcome, out = outcomes.get(case) or outcomes.get((case[0], "")) or ("", True)
        recent = bool(ours) and ours[0]["at"] >= said["sources"]["ledger"]["written_at"] - 3600
        stayed, left = outcome in STAYED and not out, not end or end[0]["left"] is not False
        settled = stayed or outcome in GIVEN_UP or (refused and outcome != "answered") or (not outcome and recent)
        kinds.update(twice=(len(ours) > 1) + (len(sent) > 1), only_book=not ours and bool(sent or refused))
        alone += sum(row["sent_bytes"] for row in sent[int(bool(ours) or not left) :])
        for row in sent[:left]:
            for g in (tuple(row[name] for name in GROUP), ()):  # and all groups together
                sums.update({(g, "sendings"): 1, (g, "bytes"): row["sent_bytes"], (g, "head_bytes"): row["head_bytes"]})
                who.add((g, case[0]))
        for row in sent[:1]:
            kinds.update(not_cleared=RANKS.get(row["data_class"], 9) > RANKS.get(row["clearance"], -1))
            for one in ours[:1]:
                other = stayed and bool(end) and end[0]["ended"] == "answered"
                lower = RANKS.get(row["data_class"], -1) < RANKS.get(row["claimed"], 9)
                kinds.update(differs=sum(one[mine] != row[theirs] for mine, theirs in SAME.items()) + other + lower)
        if ours and not sent and not settled:
            kinds["only_ledger"], alone = kinds["only_ledger"] + 1, alone + ours[0]["bytes"]
    sums.update((group, "requests") for group, _ in who)
    lists = [*said["to"], {"requests": said["left"], **{name: said[name] for name in SUMS[1:]}}]
    theirs = {(tuple(one[n] for n in GROUP if n in one), name): one[name] for one in lists for name in SUMS}
    compare("to whom, and how much", dict(sums), theirs)
    return alone


def kernel(folder, said, passed, kinds):
    """What the kernel counted from sample to sample, held against what the book explains by the statement's formula."""
    taken = [one for one in records(folder, "kernel.jsonl", said) if one["kind"] == "sample"]
    taken = [one for one in taken if said["since_at"] <= one["at"] < said["until_at"]]
    spans, sums = [], collections.Counter()
    for was, now in zip(taken, taken[1:], strict=False):  # noqa: RUF007
        alike = was["alone"] and now["alone"] and all(was[name] == now[name] for name in ("boot", "namespace"))
        if alike and was["interfaces"].keys() == now["interfaces"].keys() and now["read_at"] > was["read_at"]:
            grown = [now["interfaces"][name][i] - old[i] for name, old in was["interfaces"].items() for i in (0, 1)]
            others = [now[name] - was[name] for name in ("datagrams", "again")]
            if min(grown + others) >= 0:
                spans.append((was["read_at"], now["read_at"], sum(grown[::2]), sum(grown[1::2]), *others))
    spans.sort()
    starts, ends, booked = [s[0] for s in spans], [s[1] for s in spans], [collections.Counter() for _ in spans]
    for one, end, ended in passed:
        size = (ended["left"] is not False) * (one["sent_bytes"] + one["head_bytes"])
        more = {"body": size, "opened": ended["connections"], "back": ended["bytes_in"] + ended["head_bytes_in"]}
        good = ended["ended"] == "answered" and 200 <= (ended["status"] or 0) < 300
        good = good and not re.match(r"127\.|(localhost|::1)$", one["host"])
        for index in range(bisect.bisect_left(ends, one["at"] - 1), bisect.bisect_right(starts, end + 45)):
            by, within_it = booked[index], starts[index] + 1 <= one["at"] and end + 1 <= ends[index]
            by["requests"] += 1
            if starts[index] <= end + 1:
                by.update(more, going=ended is GONE, sure=size * bool(good and within_it))
                by["name"] = max(by["name"], len(one["host"]))
    for by, (start, end, size, packets, datagrams, again) in zip(booked, spans, strict=True):
        text = by["body"] + (by["body"] // 16384 + by["requests"] * 4) * 29 + by["opened"] * 4608
        asked = min(datagrams, by["opened"] * 16)
        frames = text // 536 + by["requests"] * 16 + by["back"] // 64 + by["opened"] * 32 + asked
        frames = min(packets - datagrams + asked, packets if by["going"] else frames - int((start - end) // 60) * 12)
        most = text + min(text, again * 8960) + asked * (128 + by["name"]) + frames * 86
        least = by["sure"] + packets * 42
        kinds.update(kernel_more=size > most, kernel_less=size < least)
        sums.update(least=least, most=most, more=max(0, size - most), uncertain=max(0, min(size, most) - least))
    mine = [len(taken), len(spans), sum(span[2] for span in spans), [sums["least"], sums["most"]]]
    compare("kernel", [*mine, sums["more"], sums["uncertain"]], [said["kernel"][name] for name in KERNEL])
    return sums["more"]


def main():
    folder, keyed, kinds = Path(sys.argv[1]), sys.argv[2:3] == ["--key"], collections.Counter()
    try:
        key = fingerprint(pem := Path(sys.argv[3]) if keyed else folder / "key.pem")
        print(f"key {key}" + ("" if keyed else " (from the folder itself: compare it)"))
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", pem, "-rawin", "-in", folder / "statement.json"]
        if subprocess.run([*command, "-sigfile", folder / "statement.sig"], capture_output=True).returncode:
            problems.append("the signature is not that of this statement by this key")
        said = json.loads((folder / "statement.json").read_bytes())
        named, doubts, seen = said["discrepancies"]["kinds"], said["doubts"]["kinds"], said["kernel"]
        (handed, outcomes), (found, passed) = ledger(folder, said), book(folder, said)
        alone = judge(said, handed, outcomes, found, kinds) + kernel(folder, said, passed, kinds)
        verdict = "not balanced" if named else "cannot say" if doubts else "balanced"
        compare("verdict and key", [key, verdict, alone], [said[n] for n in ("key", "verdict", "unaccounted_bytes")])
        compare("discrepancies", [kinds[kind] for kind in KINDS], [named.get(kind, 0) for kind in KINDS])
        problems.extend([] if "changed" in named else breaks)
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as broken:
        problems.append(f"it cannot be read: {broken if isinstance(broken, OSError) else repr(broken)}")
    if problems:
        print("NOT VERIFIED", *problems, sep="\n  ")
        return 1
    print("{since} to {until}: {requests} requests, {left} left, {bytes} bytes".format(**said))
    print("kernel:", seen["why_not"] or f"{seen['uncertain_bytes']} bytes cannot be told from overhead")
    print(f"Verified: {verdict}, {alone} bytes unaccounted.", *([named | doubts] if named | doubts else []))
    return {"balanced": 0, "not balanced": 2, "cannot say": 3}[verdict]


if __name__ == "__main__":
    sys.exit(main() if len(sys.argv) == 2 or (len(sys.argv) == 4 and sys.argv[2] == "--key") else __doc__)
