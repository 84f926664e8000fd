"""Single use of permits holds when many are open and when the clock is set back."""

from __future__ import annotations

from dataclasses import fields

import pytest

from router.door.policy import Used
from router.errors import Forbidden
from router.permit import Permit


def permit(name: str, expires: float) -> Permit:
    texts = {field.name: "" for field in fields(Permit)}
    return Permit(**{**texts, "id": name, "expires": expires})  # type: ignore[arg-type]


def test_a_full_memory_forgets_only_what_has_expired_and_accepts_none_of_it_again() -> None:
    used = Used(limit=3)
    for name in "abc":
        used.take(permit(name, 10), now=5)
    with pytest.raises(Forbidden, match="too many"):
        used.take(permit("d", 10), now=9)
    used.take(permit("d", 20), now=15)
    # The clock is set back: the forgotten permit would be valid again by its own expiry.
    with pytest.raises(Forbidden, match="used before"):
        used.take(permit("a", 10), now=5)
    with pytest.raises(Forbidden, match="used before"):
        used.take(permit("d", 20), now=15)
