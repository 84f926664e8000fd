"""Media that come inside a request: how many, how large, of which form. Pure; only headers are read, nothing decoded.

Decoders of pictures and films are where engines have been broken into, and a small file can ask for gigabytes.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from router.decision.dialects import MEDIA, parts, turns
from router.errors import BadRequest
from router.records import Route

MOST = 20
"""Media of one request: an engine makes a thousand tokens and more of each."""
MOST_PIXELS = 50_000_000
"""Of a picture, decoded some 200 MB; cameras make 12 to 48 million."""
LONGEST_SIDE = 20_000
MOST_SOUND = 8 * 2**20
"""Bytes of a recording: four minutes uncompressed, half an hour at a low rate."""
SHORTEST = 16
"""Bytes: what is shorter holds no header to look at, and the engine says so itself."""
HEADER = 1 << 18
"""Characters of base64 in which a header is looked for: a JPEG has its size behind previews and profiles."""
FILES = frozenset({"application/json", "application/pdf", "text/csv", "text/markdown", "text/plain"})
URL = re.compile(r"data:([a-z0-9.+/-]{1,80})((?:;[a-z0-9-]+=[\w.-]+)*);base64,", re.IGNORECASE)
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


class Inline(NamedTuple):
    """One piece of media: what it is to be, by its part; its type, "" where none is given; its base64."""

    kind: str
    type: str
    data: str


def check(route: Route, body: Mapping[str, Any]) -> None:
    """Raises BadRequest for media that are too many or too large, or not what they are said to be."""
    param = MEDIA.get(route, "messages")
    count = 0
    for turn in turns(route, body):
        for part in (turn, *parts(turn)) if isinstance(turn, Mapping) else ():
            for one in _media(part, param):
                count += 1
                if count > MOST:
                    raise BadRequest(f"At most {MOST} pictures, recordings and files are taken in one request.",
                                     code="media_too_large", param=param)  # fmt: skip
                _look(one, param)


def _media(part: Mapping[str, Any], param: str) -> Iterator[Inline]:
    """What a part holds, in the words of each dialect."""
    for name, kind in (("image_url", "image"), ("video_url", "video"), ("audio_url", "audio")):
        found = part.get(name)
        found = found.get("url") if isinstance(found, Mapping) else found
        if isinstance(found, str):
            yield _split(kind, found, param)
    sound = part.get("input_audio")
    if isinstance(sound, Mapping) and isinstance(sound.get("data"), str):
        named = sound.get("format")
        yield Inline("audio", f"audio/{named}" if isinstance(named, str) else "", sound["data"])
    holder = part.get("file")
    for around in (part, holder if isinstance(holder, Mapping) else {}):
        if isinstance(data := around.get("file_data"), str):
            yield _split("file", data, param) if data[:5].lower() == "data:" else Inline("file", "", data)
    source = part.get("source")
    if isinstance(source, Mapping) and source.get("type") == "base64" and isinstance(source.get("data"), str):
        kind = "image" if part.get("type") == "image" else "file"
        yield Inline(kind, str(source.get("media_type", "")), source["data"])


def _split(kind: str, url: str, param: str) -> Inline:
    found = URL.match(url, 0, 400)
    if found is None:
        raise _invalid("Media come as data: URLs with a type and base64: data:image/png;base64,…", param)
    return Inline(kind, found[1], url[found.end() :])


def _look(one: Inline, param: str) -> None:
    # The type is the caller's own word, so it is never repeated to anybody.
    kind = one.type.lower().partition(";")[0]
    data, bare = one.data, one.data.rstrip("=")
    if one.kind == "file" and len(data) < SHORTEST:
        return
    if len(data) % 4 or len(data) - len(bare) > 2 or not bare.isascii() or bare.encode().translate(None, ALPHABET):
        raise _invalid("Media are written in base64 as it is by the standard: +, / and =, without spaces.", param)
    if one.kind == "file":
        if kind and kind not in FILES:
            raise _invalid(f"A file is one of {', '.join(sorted(FILES))}.", param)
        return
    forms = {name: look for name, look in FORMS.items() if name.startswith(f"{one.kind}/")}
    if kind not in forms:
        raise _invalid(f"It is one of {', '.join(sorted(forms))}.", param)
    if one.kind == "audio" and len(data) // 4 * 3 > MOST_SOUND:
        raise BadRequest(
            f"A recording may have {MOST_SOUND >> 20} MiB; send a shorter one.", code="media_too_large", param=param
        )
    head = base64.b64decode(data[:HEADER])
    if len(head) < SHORTEST:
        return
    try:
        size = forms[kind](head)
    except (struct.error, IndexError):
        size = None
    if size is None:
        raise _invalid("What is sent is not of the type that is given with it, or is damaged.", param)
    width, height = size
    if width * height > MOST_PIXELS or max(size) > LONGEST_SIDE:
        text = f"A picture may have {MOST_PIXELS // 10**6} million pixels, {LONGEST_SIDE} on a side; make it smaller."
        raise BadRequest(text, code="media_too_large", param=param)


def _invalid(text: str, param: str) -> BadRequest:
    return BadRequest(text, code="invalid_media", param=param)


Size = tuple[int, int]


def _png(head: bytes) -> Size | None:
    return struct.unpack(">II", head[16:24]) if head.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR") else None


def _gif(head: bytes) -> Size | None:
    return struct.unpack("<HH", head[6:10]) if head.startswith((b"GIF87a", b"GIF89a")) else None


def _jpeg(head: bytes) -> Size | None:
    """Walks the segments up to the one that begins the picture; each says how long it is."""
    if not head.startswith(b"\xff\xd8\xff"):
        return None
    at = 2
    while True:
        if head[at] != 0xFF:
            return None
        while head[at] == 0xFF:  # fill bytes
            at += 1
        mark = head[at]
        if 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", head[at + 4 : at + 8])
            return width, height
        length = struct.unpack(">H", head[at + 1 : at + 3])[0]
        if length < 2 or mark in (0xD8, 0xD9, 0xDA):
            return None
        at += 1 + length


def _webp(head: bytes) -> Size | None:
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    match head[12:16]:
        case b"VP8 ":
            width, height = struct.unpack("<HH", head[26:30])
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L":
            bits = struct.unpack("<I", head[21:25])[0]
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    return None


def _begins(*marks: tuple[int, bytes]) -> Callable[[bytes], Size | None]:
    """That of what has no pixels to be counted: one of these stands at its place."""
    return lambda head: (0, 0) if any(head[at : at + len(mark)] == mark for at, mark in marks) else None


_WAV = _begins((8, b"WAVE"))
_MP3 = _begins((0, b"ID3"), (0, b"\xff\xfb"), (0, b"\xff\xf3"), (0, b"\xff\xf2"), (0, b"\xff\xfa"))
FORMS: dict[str, Callable[[bytes], Size | None]] = {
    "image/png": _png,
    "image/jpeg": _jpeg,
    "image/jpg": _jpeg,
    "image/gif": _gif,
    "image/webp": _webp,
    "audio/wav": _WAV,
    "audio/x-wav": _WAV,
    "audio/mp3": _MP3,
    "audio/mpeg": _MP3,
    "audio/flac": _begins((0, b"fLaC")),
    "audio/ogg": _begins((0, b"OggS")),
    "video/mp4": _begins((4, b"ftyp")),
    "video/webm": _begins((0, b"\x1a\x45\xdf\xa3")),
}
"""How the start of each type is read: its size in pixels, (0, 0) where it has none, None where it is something else."""
