"""Pictures, recordings and files that are too much, or not what they are said to be (SR-009 to SR-011)."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import orjson

from tests.conftest import ask
from tests.faults.cases import each
from tests.faults.conftest import MIB, FaultHouse

APPROVED = {"by": "security", "contract": "c1", "until": "2999-01-01"}
SEES = {"abilities": ["chat", "vision", "tools", "schema"]}
CHAT = "/v1/chat/completions"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int = 2, height: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(14))) + chunk(b"IEND", b"")


def jpeg(width: int = 2, height: int = 2, before: int = 300) -> bytes:
    profile = b"\xff\xe1" + struct.pack(">H", before + 2) + bytes(before)
    size = b"\xff\xc2\x00\x11\x08" + struct.pack(">HH", height, width)
    return b"\xff\xd8" + profile * 2 + size + b"\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xd9"


def webp(width: int = 2, height: int = 2) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + size


def lossless(width: int = 2, height: int = 2) -> bytes:
    return b"RIFF\x1e\0\0\0WEBPVP8L\x0a\0\0\0\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(8)


def gif(width: int = 2, height: int = 2) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(20)


JP2 = b"\x00\x00\x00\x0cjP  \r\n\x87\n\x00\x00\x00\x14ftypjp2 " + bytes(40)
WAV = b"RIFF" + struct.pack("<I", 100) + b"WAVEfmt " + bytes(92)
MP3 = b"ID3\x04\0\0" + bytes(60)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{text(data)}"


def picture(found: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": found}}


def sound(data: str, form: str = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": form}}


def chat(*parts: dict[str, Any], model: str = "small") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": [{"type": "text", "text": "look"}, *parts]}]}


async def begin(house: FaultHouse) -> str:
    await house.start(models={"small": SEES})
    return house.key("private")


async def told(house: FaultHouse, body: dict[str, Any], code: str, path: str = CHAT) -> None:
    """It is refused with this code before it reached anybody."""
    before = house.asked()
    found = await house.tell(body, await begin(house), path)
    assert (found.status, found.code) == (400, code), found.body
    assert house.asked() == before and house.leaked() == 0


GOOD = {
    "png": url(png()),
    "jpeg": url(jpeg(), "image/jpeg"),
    "jpg": url(jpeg(4000, 3000, 60_000), "image/jpg"),
    "webp": url(webp(), "image/webp"),
    "lossless": url(lossless(), "image/webp"),
    "gif": url(gif(), "image/gif"),
    "large": url(png(7000, 7000)),
    "with a name": url(png()).replace(";", ";name=a.png;"),
    "DATA": "DATA" + url(png())[4:],
}


@each(GOOD)
async def test_sr_009_ordinary_pictures_pass(house: FaultHouse, *found: str) -> None:
    key = await begin(house)
    assert (await house.tell(chat(picture("".join(found))), key)).status == 200
    responses = {
        "model": "small",
        "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "".join(found)}]}],
    }
    assert (await house.tell(responses, key, "/v1/responses")).status == 200


BOMBS = {
    "png": url(png(100_000, 100_000)),
    "long": url(png(30_000, 1)),
    "jpeg": url(jpeg(65_000, 65_000), "image/jpeg"),
    "webp": url(webp(16_000, 16_000), "image/webp"),
    "lossless": url(lossless(16_000, 16_000), "image/webp"),
    "gif": url(gif(60_000, 60_000), "image/gif"),
    "behind profiles": url(jpeg(65_000, 65_000, 65_000), "image/jpeg"),
}


@each({name: (found,) for name, found in BOMBS.items()})
async def test_sr_009_a_picture_that_unpacks_to_gigabytes_goes_to_no_engine(house: FaultHouse, bomb: str) -> None:
    await told(house, chat(picture(bomb)), "media_too_large")


NOT_ONE = {
    "jpeg 2000": url(JP2, "image/jp2"),
    "jpeg 2000 as png": url(JP2),
    "jpeg 2000 as a film": url(JP2, "video/jpeg"),
    "page as gif": url(b"<html><script>alert(1)</script></html>", "image/gif"),
    "svg": url(b"<svg/>" * 9, "image/svg+xml"),
    "png as jpeg": url(png(), "image/jpeg"),
    "jpeg without a size": url(jpeg()[:200], "image/jpeg"),
    "torn png": url(png()[:20]),
    "riff that is no picture": url(WAV, "image/webp"),
    "tiff": url(b"II*\0" * 9, "image/tiff"),
}


@each({name: (found,) for name, found in NOT_ONE.items()})
async def test_sr_009_what_is_not_the_picture_it_is_said_to_be_is_refused(house: FaultHouse, found: str) -> None:
    await told(house, chat(picture(found)), "invalid_media")


async def test_sr_009_films_are_only_the_two_kinds_there_are_decoders_for(house: FaultHouse) -> None:
    for kind, data in (("video/jpeg", JP2), ("video/mp4", JP2[:4] + bytes(40)), ("video/quicktime", bytes(40))):
        part = {"type": "video_url", "video_url": {"url": url(data, kind)}}
        found = await house.tell(chat(part), await begin(house))
        assert (found.status, found.code) == (400, "invalid_media"), kind
        house.start = _started  # type: ignore[method-assign]
    assert house.asked() == 0


async def _started(**_: Any) -> None: ...


async def test_sr_009_a_hundred_pictures_are_too_many(house: FaultHouse) -> None:
    await told(house, chat(*[picture(url(png()))] * 100), "media_too_large")


async def test_sr_009_an_engines_words_about_a_picture_hold_nothing_of_its_inside(house: FaultHouse) -> None:
    key = await begin(house)
    words = "cannot identify image file <_io.BytesIO object at 0x7f3a5c1e2d40>"
    house.fail_all({"status": 400, "body": orjson.dumps({"error": {"message": words}}).decode()})
    found = await house.tell(chat(picture(url(png()))), key)
    assert found.status == 400 and b"0x7f" not in found.body and b"cannot identify" in found.body


WRONG = {
    "nothing": "data:image/png,abc",
    "not base64": "data:image/png;base64,§§§§",
    "a space": url(png()).replace("A", " ", 1),
    "a line": url(png())[:60] + "\n" + url(png())[60:],
    "url-safe": "data:image/png;base64,iVBOR_-_",
    "short": url(png())[:-1],
    "three equals": "data:image/png;base64,A===",
    "equals inside": "data:image/png;base64,iV==BORw",
    "no type": "data:;base64,AAAA",
    "a type that is none": "data:image/png\n;base64,AAAA",
    "wrong type": url(png(), "text/plain"),
    "another": url(png(), "application/octet-stream"),
    "a page": url(png(), "text/html"),
}


@each({name: (found,) for name, found in WRONG.items()})
async def test_sr_010_base64_and_types_are_as_the_standard_has_them(house: FaultHouse, found: str) -> None:
    await told(house, chat(picture(found)), "invalid_media")


async def test_sr_010_the_other_dialects_are_held_to_the_same(house: FaultHouse) -> None:
    key = await begin(house)
    for kind, data in (("image/png", "AA A"), ("image/png", text(png(100_000, 100_000))), ("text/html", text(png()))):
        source = {"type": "base64", "media_type": kind, "data": data}
        body = {
            "model": "small",
            "max_tokens": 5,
            "messages": [{"role": "user", "content": [{"type": "image", "source": source}]}],
        }
        assert (await house.tell(body, key, "/v1/messages")).status == 400
        body = {
            "model": "small",
            "input": [
                {"role": "user", "content": [{"type": "input_image", "image_url": f"data:{kind};base64,{data}"}]}
            ],
        }
        assert (await house.tell(body, key, "/v1/responses")).status == 400
    assert house.asked() == 0


SOUNDS = {
    "an hour": (text(WAV + bytes(9 * 2**20)), "wav", "media_too_large"),
    "wrong codec": (text(WAV), "mp3", "invalid_media"),
    "picture": (text(png()), "wav", "invalid_media"),
    "unknown": (text(WAV), "wma", "invalid_media"),
    "a path": (text(WAV), "../../x", "invalid_media"),
    "not base64": ("AA A", "wav", "invalid_media"),
}


@each(SOUNDS)
async def test_sr_011_recordings_have_a_cap_and_are_what_they_are_said_to_be(
    house: FaultHouse, data: str, form: str, code: str
) -> None:
    house.most_bytes = 128 * MIB  # of one that is too long the test itself has several copies
    await told(house, chat(sound(data, form)), code)


async def test_sr_011_there_is_no_way_to_upload_a_file(house: FaultHouse) -> None:
    key = await begin(house)
    form = b'--x\r\ncontent-disposition: form-data; name="file"; filename="../../x"\r\n\r\nabc\r\n--x--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    for path in ("/v1/audio/transcriptions", "/v1/files", "/v1/uploads", "/v1/images/edits"):
        assert (await house.tell(form, key, path, headers)).status == 404
    assert (await house.tell(form, key, CHAT, headers)).status in (400, 415)


async def test_sr_011_a_recording_is_private_to_a_public_key_and_leaves_only_to_who_may_have_that(
    house: FaultHouse,
) -> None:
    """And what a file is called never leaves."""
    house.may_leave = True
    trusted = {
        "place": "hosted",
        "lanes": ["frontier"],
        "context": 100_000,
        "output": 1000,
        "provider": "far",
        "provider_model": "far-2",
        "clearance": "private",
        "approved": APPROVED,
        "price": {"input": 1, "output": 1},
        **SEES,
    }
    await house.start(hosted=True, models={"big": SEES, "trusted": trusted})
    key = house.key("public")
    part = sound(text(MP3), "mp3")
    found = await house.tell(chat(part, model="big"), key)
    assert (found.status, found.code) == (403, "data_class_not_cleared") and house.provider.accepted == 0
    file = {
        "type": "file",
        "file": {"filename": "../../Jones, diagnosis.pdf", "file_data": url(b"%PDF-1", "application/pdf")},
    }
    assert (await house.tell(chat(part, file, model="trusted"), key)).status == 200
    sent = house.provider.requests[-1]
    assert b"Jones" not in sent.body and b'"filename":"file.pdf"' in sent.body
    assert (await house.tell(ask("big"), key)).status == 200
