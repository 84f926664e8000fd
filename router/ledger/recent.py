"""The requests that came last, a row each, out of the ledger's file.

It reads only, beside a router that runs as well as without one. No record has any text of a request, so neither has a
row.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from router.ledger.store import LedgerError, connect

# Neither looks at more than what comes last, for a ledger may hold millions: what was opened is found by its time, what
# was refused (few are, and there is no index for them) among all that was written since the first of those.
LAST = """
WITH opened AS (SELECT rowid AS n, * FROM events WHERE kind = 'opened' ORDER BY at DESC LIMIT :most),
refused AS (SELECT rowid AS n, * FROM events WHERE kind = 'refused'
    AND rowid >= (SELECT COALESCE(MIN(n), 0) FROM opened) ORDER BY rowid DESC LIMIT :most)
SELECT o.at AS at, o.request AS request, o.key AS key, json_extract(o.body, '$.team') AS team,
    json_extract(o.body, '$.asked') AS asked, json_extract(c.body, '$.model') AS model,
    COALESCE(json_extract(c.body, '$.outcome'), json_extract(o.body, '$.outcome'), 'open') AS outcome,
    COALESCE(json_extract(c.body, '$.status'), json_extract(o.body, '$.status')) AS status,
    COALESCE(json_extract(c.body, '$.error'), json_extract(o.body, '$.error'), '') AS error,
    c.cost AS cost_usd, json_extract(c.body, '$.total_ms') AS total_ms
FROM (SELECT * FROM opened UNION ALL SELECT * FROM refused) o
LEFT JOIN events c INDEXED BY events_by_request ON c.request = o.request AND c.kind = 'closed'
ORDER BY o.at DESC LIMIT :most
"""


@dataclass(frozen=True, slots=True)
class Recent:
    """One request. `asked` is None where it was refused before that was read, the rest where it has not ended."""

    at: float
    request: str
    key: str
    team: str
    asked: str | None
    model: str | None
    """The one that answered."""
    outcome: str
    """`open` where it has not ended."""
    status: int | None
    error: str
    """The code of the error it ended with."""
    cost_usd: float | None
    total_ms: float | None


def last(path: Path, most: int) -> list[Recent]:
    """The last `most` requests, the newest first; none where nothing was ever asked. Raises LedgerError."""
    if not path.exists():
        return []
    try:
        with contextlib.closing(connect(path, read_only=True)) as db:
            db.row_factory = sqlite3.Row
            return [Recent(**row) for row in db.execute(LAST, {"most": most})]
    except sqlite3.Error as broken:
        raise LedgerError(f"the ledger {path} cannot be read: {broken}; see: headgate doctor") from broken
