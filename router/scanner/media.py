"""Finds media that whoever answers would fetch from an address: an address can carry data. Pure.

Knows where engines and providers look for media in a conversation; knows nothing of models or clearances.
"""

from __future__ import annotations

import re

CONVERSATION = frozenset({"instructions", "input", "messages", "prediction", "prompt", "system"})
"""The top-level fields that carry what is said."""
LINKS = frozenset({"annotations", "citations"})
"""Links of an earlier answer for people; nobody fetches them."""
_MEDIA = ("image", "video", "audio", "file", "input_", "media", "document", "source")
"""How names begin of parts that hold or point at media, or of the wrapping around them."""
_NAMED = ("_url", "_uri", "_urls")
_ADDRESS = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
"""In other fields of such a part, which hold base64, names and formats."""


def about_media(name: str) -> bool:
    """Whether what stands in a field of this name is media, or points at some."""
    return name.startswith(_MEDIA)


def fetched(name: str, text: str, media: bool) -> bool:
    """Whether a text is an address of media: every URL that is no data: URL, which carries its bytes itself.

    `name` is the nearest field it stands in, `media` whether any field around it is about media.
    """
    if name == "url" or name.endswith(_NAMED):
        return not text.lower().startswith("data:")
    return media and _ADDRESS.match(text) is not None
