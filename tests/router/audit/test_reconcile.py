"""What ledger and book say of one permit, held against each other."""

from __future__ import annotations

from typing import Any

import pytest

from router.audit.reconcile import UNDER_WAY_S, Judged, Row, Window, reconcile

AT = 1_000_000.0
WINDOW = Window(AT - 100, AT + 10 * UNDER_WAY_S, "boot2")
BOTH = {"key": "k", "team": "t", "provider": "far", "model": "big", "path": "chat/completions", "policy": "v1"}


def handed(**more: Any) -> Row:
    fields = BOTH | {"what": "handed", "request": "r", "permit": "p", "at": AT, "bytes": 100, "data_class": "public"}
    return fields | {"sha256": "aa", "door": "boot1"} | more


def finished(outcome: str = "answered", *, sent: bool = True, **more: Any) -> Row:
    fields = {"what": "finished", "request": "r", "permit": "p", "at": AT + 2, "outcome": outcome, "sent": sent}
    return fields | more


def sent(**more: Any) -> Row:
    fields = BOTH | {"what": "sent", "request": "r", "permit": "p", "at": AT + 0.1, "host": "api.example", "rule": "x"}
    classes = {"claimed": "public", "data_class": "public", "clearance": "public"}
    return fields | classes | {"boot": "boot1", "received_sha256": "aa", "sent_bytes": 140, "head_bytes": 9} | more


def ended(how: str = "answered", **more: Any) -> Row:
    fields = {"what": "ended", "request": "r", "permit": "p", "at": AT + 1, "ended": how, "status": 200, "left": True}
    return fields | more


def refused(**more: Any) -> Row:
    return {"what": "refused", "request": "r", "permit": "p", "at": AT + 0.1, "code": "not_scannable"} | more


def judged(*rows: Row, window: Window = WINDOW) -> Judged:
    """Of one request; the rows may come in any order but that of permits."""
    return next(iter(reconcile(sorted(rows, key=lambda row: row["permit"]), window)), Judged("r"))


def kinds(found: Judged) -> tuple[list[str], list[str], int]:
    """Of discrepancies and notes, and how many bytes left."""
    left = sum(one.bytes for one in found.left)
    return [one.kind for one in found.discrepancies], [one.kind for one in found.notes], left


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((handed(), finished(), sent(), ended()), ([], [], 140)),
        # Nothing left, and both sides know.
        ((handed(), finished("door_refused", sent=False), refused()), ([], [], 0)),
        ((handed(), finished("door_closed", sent=False)), ([], [], 0)),
        ((handed(), finished("unreachable", sent=False), sent(), ended("failed", left=False)), ([], [], 0)),
        # Given up, killed, or going on.
        ((handed(), finished("client_left")), ([], ["given_up"], 0)),
        ((handed(), finished("lost", permit="")), ([], ["given_up"], 0)),
        ((handed(), finished("lost", permit=""), sent(), ended()), ([], [], 140)),
        ((handed(), finished("reset"), sent()), ([], ["no_end"], 140)),
        # One side alone.
        ((sent(), ended()), (["only_book"], [], 140)),
        ((refused(),), (["only_book"], [], 0)),
        ((ended(),), (["no_beginning"], [], 0)),
        ((handed(), finished()), (["only_ledger"], [], 0)),
        ((handed(), finished("first_byte_timeout")), (["only_ledger"], [], 0)),
        ((handed(), finished("answered"), refused()), (["only_ledger"], [], 0)),
        ((handed(),), (["only_ledger"], [], 0)),
        # Both, and not the same.
        ((handed(), finished("door_closed", sent=False), sent(), ended()), (["differs"], [], 140)),
        ((handed(), finished(), sent(received_sha256="bb"), ended()), (["differs"], [], 140)),
        ((handed(), finished(), sent(claimed="internal", clearance="internal", data_class="internal"), ended()),
         (["differs"], [], 140)),
        ((handed(), finished(), sent(boot="boot7"), ended()), (["differs"], [], 140)),
        ((handed(), handed(), finished(), sent(), ended()), (["twice"], [], 140)),
        ((handed(), finished(), sent(), sent(), ended()), (["twice"], [], 140)),
        # The door's own class.
        ((handed(), finished(), sent(data_class="internal", clearance="internal"), ended()),
         ([], ["higher_class"], 140)),
        ((handed(), finished(), sent(data_class="private"), ended()), (["not_cleared"], ["higher_class"], 140)),
        ((handed(data_class="internal"), finished(), sent(claimed="internal", clearance="internal"), ended()),
         (["differs"], [], 140)),
        # A permit that was used, by a connection that then broke, and shown again.
        ((handed(), finished("door_refused", sent=True), sent(), ended()), ([], [], 140)),
    ],
)  # fmt: skip
def test_what_both_sides_say_of_one_permit(rows: tuple[Row, ...], expected: tuple[list[str], list[str], int]) -> None:
    assert kinds(judged(*rows)) == expected


def test_bytes_that_one_side_alone_has_are_unaccounted() -> None:
    assert judged(sent(), ended()).discrepancies[0].bytes == 140
    assert judged(sent(), ended("failed", left=False)).discrepancies[0].bytes == 0
    assert judged(handed(), finished()).discrepancies[0].bytes == 100
    assert judged(handed(), finished(), sent(), sent(), ended()).discrepancies[0].bytes == 140


def test_what_goes_on_at_the_end_of_the_window_is_under_way() -> None:
    now = Window(AT - 100, AT + 5, "boot1", AT)
    assert kinds(judged(handed(), window=now)) == ([], ["under_way"], 0)
    assert kinds(judged(handed(), sent(), window=now)) == ([], ["under_way"], 140)
    assert kinds(judged(handed(), sent(boot="boot0"), window=now))[1] == ["no_end"], "an earlier door's goes on no more"


def test_what_a_router_was_killed_over_is_no_discrepancy_however_late_it_is_asked() -> None:
    """Nobody has written since: no start has called it lost yet. Once somebody has, it must have an end."""
    late = Window(AT - 100, AT + 30 * 86400, "boot1", AT + 1)
    assert kinds(judged(handed(), window=late)) == ([], ["under_way"], 0)
    assert kinds(judged(handed(), sent(), ended(), window=late)) == ([], [], 140)
    written = Window(AT - 100, AT + 30 * 86400, "boot1", AT + 2 * UNDER_WAY_S)
    assert kinds(judged(handed(), window=written)) == (["only_ledger"], [], 0)
    assert kinds(judged(handed(), sent(), ended(), window=written)) == (["no_end"], [], 140)


def test_what_an_earlier_release_sent_is_told_apart() -> None:
    row = {"what": "earlier", "request": "r", "permit": "p", "at": AT, "bytes": 70}
    found = judged(row)
    assert [one["bytes"] for one in found.earlier] == [70] and kinds(found) == ([], [], 0)
    assert judged(row, window=Window(AT + 1, AT + 2)).earlier == []


@pytest.mark.parametrize(
    ("since", "until", "there"), [(0, 1, True), (0.05, 1, False), (-1, 0, False), (-1, 0.05, True)]
)
def test_a_sending_belongs_to_the_window_of_the_ledgers_moment(since: float, until: float, there: bool) -> None:
    """Where the edge falls between the ledger's row and the book's, it is in one window, and in one alone."""
    found = judged(handed(), finished(), sent(), ended(), window=Window(AT + since, AT + until, "boot1"))
    assert [one.bytes for one in found.left] == ([140] if there else [])
    assert found.discrepancies == []


def test_a_sentence_names_request_and_permit_and_where_it_went() -> None:
    (one,) = judged(sent(request="r", sent_bytes=1234)).discrepancies
    assert one.sentence == (
        "Request r, permit p: by the book 1,234 bytes left for api.example, and the ledger never handed it over."
    )


def test_a_request_that_was_tried_three_times_is_one_request() -> None:
    rows: list[Row] = []
    for permit in "pqs":
        rows += [make(permit=permit) for make in (handed, finished, sent, ended)]
    (found,) = reconcile(rows, WINDOW)
    assert len(found.left) == 3 and found.discrepancies == []
