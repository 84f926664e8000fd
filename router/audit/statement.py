"""The egress statement: what left, as canonical JSON, signed with a key of this installation's own.

Whoever has the public key can check it without Headgate: `deploy/verify_statement.py` does.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from router.audit import overhead
from router.audit.egress import Egress, Findings
from serving.home import Home

FILES = ("statement.json", "statement.sig", "key.pem")
"""What an export has beside the excerpts: the statement, its signature of 64 bytes, the public key."""
EARLIER = ("requests", "sendings", "bytes")
SUMS = ("requests", "sendings", "bytes", "head_bytes")
SHARED = "the door shares its network namespace with other programs, so the kernel's counters are not of it alone"
NO_SAMPLES = "the door took no samples of the kernel's counters in this time"


def signing_key(home: Home) -> Ed25519PrivateKey:
    """The installation's key for statements, made on first use; only its owner can read it. Raises OSError."""
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(home.secret("statement")))


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the public key's 32 bytes: what two people compare."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


def content(found: Egress, *, installation: str, machine: str, made_at: float) -> dict[str, Any]:
    """What the statement says: ids, names, numbers and hashes; never any text of a request."""
    window = found.window
    return {
        "statement": "headgate egress", "version": 2, "installation": installation, "machine": machine,
        "made_at": _iso(made_at), "since": _iso(window.since), "until": _iso(window.until),
        "since_at": window.since, "until_at": window.until,
        "requests": found.records.requests, "left": found.requests,
        "sendings": sum(sums[1] for sums in found.sums.values()),
        "bytes": sum(sums[2] for sums in found.sums.values()),
        "head_bytes": sum(sums[3] for sums in found.sums.values()),
        "to": [
            {**group._asdict(), **dict(zip(SUMS, sums, strict=True))} for group, sums in sorted(found.sums.items())
        ],
        "unaccounted_bytes": found.discrepancies.bytes + kernel(found)["unaccounted_bytes"],
        "not_reconciled": {**dict(zip(EARLIER, found.earlier, strict=True)), "boots": sorted(found.boots)},
        "verdict": found.verdict,
        "discrepancies": _findings(found.discrepancies), "doubts": _findings(found.doubts),
        "notes": _findings(found.notes),
        "kernel": kernel(found), "sources": _sources(found),
        "excerpts": {
            f"{name}.jsonl": {"lines": one.lines, "bytes": one.size, "sha256": one.digest}
            for name, one in found.excerpts.items()
        },
    }  # fmt: skip


def kernel(found: Egress) -> dict[str, Any]:
    """What the kernel says: its sums, what the book explains of them, and for how much of the time."""
    spans, seen = found.kernel.spans, found.kernel
    pairs = list(zip(spans, seen.booked, strict=True))
    explained = [overhead.explained(booked, span.counted) for span, booked in pairs]
    return {
        "witness": bool(spans), "why_not": "" if spans else SHARED if seen.shared else NO_SAMPLES,
        "samples": seen.samples, "shared_samples": seen.shared, "intervals": len(spans),
        "seconds": round(sum(span.end - span.start for span in spans), 1),
        "frame_bytes": sum(span.counted.bytes for span in spans),
        "packets": sum(span.counted.packets for span in spans),
        "explained": [sum(one.least for one in explained), sum(one.most for one in explained)],
        "unaccounted_bytes": sum(overhead.unaccounted(booked, span.counted) for span, booked in pairs),
        "uncertain_bytes": sum(overhead.uncertain(booked, span.counted) for span, booked in pairs),
        "formula": overhead.FORMULA,
    }  # fmt: skip


def _findings(found: Findings) -> dict[str, Any]:
    return {
        "count": found.kinds.total(), "kinds": dict(found.kinds), "bytes": found.bytes,
        "shown": [one._asdict() for one in found.shown],
    }  # fmt: skip


def _sources(found: Egress) -> dict[str, Any]:
    """Where the sources ended when they were read: whoever keeps this finds out what is cut off later."""
    records = found.records
    heads = {writer: list(records.heads[writer]) for writer in sorted(records.writers)}
    return {
        "ledger": {
            "events": records.events,
            "sha256": records.digest,
            "heads": heads,
            "written_at": records.newest,
        },
        "book": {"lines": found.book.count, "head": found.book.head, "boot": found.book.boot},
        "kernel": {"lines": found.samples.count, "head": found.samples.head},
    }


def export(folder: Path, said: dict[str, Any], key: Ed25519PrivateKey) -> None:
    """Write the signed statement and the public key beside the excerpts. Raises OSError."""
    public = key.public_key()
    raw = orjson.dumps({**said, "key": fingerprint(public)}, option=orjson.OPT_SORT_KEYS)
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for name, data in zip(FILES, (raw, key.sign(raw), pem), strict=True):
        (folder / name).write_bytes(data)


def _iso(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="seconds")
