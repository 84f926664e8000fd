#!/usr/bin/env python3
"""Verifies an egress statement offline: `python3 verify_statement.py FOLDER [--key key.pem]`.

It shares no code with Headgate and needs only Python 3.9 and either the package `cryptography` or the command
`openssl` (3.0 or newer). It checks the signature; the excerpts against the statement's hashes; every line's own hash
and the chains; and it works out anew who got what, and what of it both sides have.
Exit code 0: verified, and the counts agree; 2: verified, and the statement itself says that they do not; 1: not
verified. What it cannot check: that no source was left out from the start, and the number of requests, which needs the
whole ledger; both are the signer's word, bound to the heads of the chains that the statement names. So is what of the
kernel's count is explained: its samples are checked, and its sums are not worked out anew.
"""

import argparse
import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

STAYED = {
    "not_recorded", "door_closed", "door_refused", "unreachable", "pool_full",
    "client_left", "stopped", "lost", "reset", "closed",
}  # fmt: skip
RANKS = {"public": 0, "internal": 1, "private": 2, "secret": 3}
NAMES = ("provider", "host", "model", "rule", "data_class", "requests", "sendings", "bytes", "head_bytes")
HASH = re.compile(rb'"hash":"([0-9a-f]{64})",')
problems = []


def bad(text):
    problems.append(text)


def canonical(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def signed_by(folder, pem):
    """Whether the signature is that of the statement's bytes by this public key."""
    statement, signature = folder / "statement.json", folder / "statement.sig"
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(pem), "-rawin"]
        command += ["-in", str(statement), "-sigfile", str(signature)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        load_pem_public_key(pem.read_bytes()).verify(signature.read_bytes(), statement.read_bytes())
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(pem):
    """SHA-256 of the key's 32 bytes. More in its file than one key could hide the one that verifies."""
    body = (*pem.read_text().split("\n"), "", "")[1]
    whole = f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----"
    der = base64.b64decode(body) if re.fullmatch("[A-Za-z0-9+/]{59}=", body) else b""
    if pem.read_text().rstrip("\n") != whole or der[:12].hex() != "302a300506032b6570032100" or len(der) != 44:
        raise ValueError(f"{pem} is not one Ed25519 public key in PEM and nothing else")
    return hashlib.sha256(der[-32:]).hexdigest()


def lines_of(folder, name, said):
    """The lines of one excerpt, once all of it is what the statement says."""
    whole, size, lines = hashlib.sha256(), 0, 0
    with (folder / name).open("rb") as file:
        for raw in file:
            whole.update(raw)
            size, lines = size + len(raw), lines + 1
            yield raw
    if (whole.hexdigest(), size, lines) != (said["sha256"], said["bytes"], said["lines"]):
        bad(f"{name} is not the excerpt that was signed")


def chain(folder, name, said):
    """The entries of a chained excerpt; each is held against its hash and the line before."""
    before = None
    for number, raw in enumerate(lines_of(folder, name, said), 1):
        found = HASH.findall(raw)
        if len(found) != 1 or hashlib.sha256(HASH.sub(b"", raw, count=1)[:-1]).hexdigest().encode() != found[0]:
            bad(f"{name}, line {number}: its hash is wrong")
            continue
        entry = json.loads(raw)
        if before is not None and entry["prev"] != before:
            bad(f"{name}, line {number}: does not follow the line before")
        before = found[0].decode()
        yield entry


def events(folder, said):
    """The ledger's events of the excerpt, each held against its own hash and, as a neighbour, the one before."""
    last = {}
    for number, raw in enumerate(lines_of(folder, "ledger.jsonl", said), 1):
        one = json.loads(raw)
        order = ("prev", "writer", "seq", "at", "kind", "request", "key", "cost", "body")
        if hashlib.sha256(canonical([one[name] for name in order])).hexdigest() != one["hash"]:
            bad(f"ledger.jsonl, line {number}: its hash is wrong")
        seq, digest = last.get(one["writer"], (0, ""))
        if one["seq"] <= seq or (one["seq"] == seq + 1 and one["prev"] != digest):
            bad(f"ledger.jsonl, line {number}: out of order")
        last[one["writer"]] = (one["seq"], one["hash"])
        yield {**one, "body": json.loads(one["body"])}


def read(folder, said):
    """What both sides say, by permit."""
    handed, by_request, stayed, sent, ended = {}, {}, set(), {}, {}
    for event in events(folder, said["excerpts"]["ledger.jsonl"]):
        body = event["body"]
        if event["kind"] == "sending":
            handed[body["permit"]] = {"at": event["at"], "sha256": body["sha256"]}
            by_request.setdefault(event["request"], []).append(body["permit"])
        elif body["outcome"] == "lost":
            stayed.update(by_request.get(event["request"], ()))
        else:
            stayed.update(a["permit"] for a in body["attempts"] if a.get("permit") and a["outcome"] in STAYED)
    for entry in chain(folder, "book.jsonl", said["excerpts"]["book.jsonl"]):
        permit = entry.get("permit")
        if entry["kind"] == "sending":
            sent[permit] = entry
        elif entry["kind"] == "ended":
            ended[permit] = entry["left"]
        elif entry["kind"] == "refused":
            stayed.add(permit)
    return handed, stayed, sent, ended


def compare(name, mine, theirs):
    if mine != theirs:
        bad(f"{name}: the excerpts say {mine}, the statement {theirs}")


def recompute(said, handed, stayed, sent, ended):
    """The sums of the statement, once more."""
    groups, requests, in_book, in_ledger, wrong = {}, set(), 0, 0, 0
    for permit, entry in sent.items():
        at = handed[permit]["at"] if permit in handed else entry["at"]
        if not said["since_at"] <= at < said["until_at"]:
            continue
        in_book += permit not in handed
        wrong += RANKS[entry["data_class"]] > RANKS[entry["clearance"]]
        wrong += permit in handed and handed[permit]["sha256"] != entry["received_sha256"]
        if ended.get(permit) is False:  # not a byte of it left
            continue
        group = tuple(entry[name] for name in NAMES[:5])
        sums = groups.setdefault(group, [set(), 0, 0, 0])
        sums[0].add(entry["request"])
        sums[1:] = [sums[1] + 1, sums[2] + entry["sent_bytes"], sums[3] + entry["head_bytes"]]
        requests.add(entry["request"])
    for permit, one in handed.items():
        within = said["since_at"] <= one["at"] < said["until_at"]
        in_ledger += within and permit not in sent and permit not in stayed
    if in_book or wrong or in_ledger > said["notes"]["kinds"].get("under_way", 0):
        print(f"in the book alone {in_book}, in the ledger alone {in_ledger}, above clearance or other bodies {wrong}")
        if said["balanced"]:
            bad("the statement says that ledger and book agree, and its excerpts do not")
    mine = [[*group, len(sums[0]), *sums[1:]] for group, sums in sorted(groups.items())]
    compare("to whom", mine, [[one[name] for name in NAMES] for one in said["to"]])
    compare("left", len(requests), said["left"])
    compare("bytes", sum(one[-2] for one in mine), said["bytes"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `headgate audit egress --export` wrote")
    parser.add_argument("--key", type=Path, help="the public key as you got it some other way; else the folder's")
    given = parser.parse_args()
    try:
        pem = given.key or given.folder / "key.pem"
        key = fingerprint(pem)
        print(f"key {key}" + ("" if given.key else " (from the folder itself: compare it)"))
        if not signed_by(given.folder, pem):
            bad("the signature is not that of this statement by this key")
        said = json.loads((given.folder / "statement.json").read_bytes())
        compare("key", key, said["key"])
        recompute(said, *read(given.folder, said))
        kernel = chain(given.folder, "kernel.jsonl", said["excerpts"]["kernel.jsonl"])
        compare("samples of the kernel", sum(e["kind"] == "sample" for e in kernel), said["kernel"]["samples"])
    except (OSError, KeyError, TypeError, ValueError) as broken:
        bad(f"it cannot be read: {broken!r}")
    if problems:
        print("NOT VERIFIED", *problems, sep="\n  ")
        return 1
    print(
        f"{said['since']} to {said['until']}: {said['requests']} requests, {said['left']} left, {said['bytes']} bytes"
    )
    print(f"unaccounted: {said['unaccounted_bytes']} bytes; kernel: {said['kernel']['why_not'] or 'a witness'}")
    count = said["discrepancies"]["count"]
    print("Verified." if said["balanced"] else f"Verified; the statement itself names {count} discrepancies.")
    return 0 if said["balanced"] else 2


if __name__ == "__main__":
    sys.exit(main())
