"""Finds media that whoever answers would fetch from an address: an address can carry data. Pure.

Knows where engines and providers look for media in a conversation; knows nothing of models or clearances.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CONVERSATION = ("messages", "prompt", "input", "prediction")
_MEDIA = re.compile(r"image|video|audio|file|input_|media|document|source")
"""How names begin of parts that hold or point at media, or of the wrapping around them."""
_ADDRESS = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
"""In other fields of such a part, which hold base64, names and formats."""


def names_address(body: Mapping[str, Any]) -> bool:
    """Whether a part's media lie elsewhere: every URL that is no data: URL, which carries its bytes itself."""
    # Without recursion, so that the depth of the input costs nothing: (name, value, whether in a part with media).
    stack = [("", body[name], False) for name in CONVERSATION if name in body]
    while stack:
        name, value, media = stack.pop()
        if isinstance(value, list):
            stack += [(name, item, media) for item in value]
        elif isinstance(value, dict):
            # Citations of an earlier answer are links for people; no provider fetches them.
            stack += [
                (inner, item, media or _MEDIA.match(inner) is not None)
                for inner, item in value.items()
                if inner != "annotations"
            ]
        elif isinstance(value, str) and _fetched(name, value, media):
            return True
    return False


def _fetched(name: str, value: str, media: bool) -> bool:
    if name == "url" or name.endswith(("_url", "_uri", "_urls")):
        return not value.lower().startswith("data:")
    return media and _ADDRESS.match(value) is not None
