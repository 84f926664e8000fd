"""Which data class a request has: the highest that key, caller or content gives it. Pure."""

from __future__ import annotations

import re

from router.records import Ask, Caller, Findings
from serving.catalogue import DataClass

PLACE = re.compile(r"(messages|prompt|input|prediction|system)(\[\d{1,6}\])*(\.(content|output)(\[\d{1,6}\])*)?")
"""The start of a path that is made of the API's own words. The rest may hold keys, and a key can be text."""


def data_class_of(ask: Ask, caller: Caller, findings: Findings) -> tuple[DataClass, str]:
    """The class and where it comes from, in words that quote nothing of the request.

    Nothing here can lower what the key says; where two say the same, the key is named.
    """
    highest, why = caller.data_class, f"key {caller.key} is {caller.data_class.name}"
    if ask.data_class is not None and ask.data_class > highest:
        highest, why = ask.data_class, f"the request says {ask.data_class.name}"
    if findings.opaque and highest < DataClass.private:
        place = PLACE.match(findings.opaque[0])
        where = place[0] if place else "a part of the body"
        highest, why = DataClass.private, f"{where} cannot be read and so counts as private"
    return highest, why
