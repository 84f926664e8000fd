"""Described machines, `8xH200` or `2xL40S,1xH100`, as readings: one that is not here can be planned for. Pure."""

from __future__ import annotations

import re

from serving.gpus import Gpu, Readings

MIB = 1024**2 / 10**9
HELD_GB = 0.6
"""What a driver keeps of an empty GPU."""
NEWEST = 99.0
"""The compute capability of a GPU that is described by its memory alone: new enough for everything."""
MOST = 64
"""GPUs of one machine at most."""

BOARDS: dict[str, tuple[int, float]] = {
    "T4": (15360, 7.5), "V100-16GB": (16384, 7.0), "V100-32GB": (32768, 7.0),
    "A10": (23028, 8.6), "A30": (24576, 8.0), "A40": (46068, 8.6), "A6000": (49140, 8.6),
    "A100-40GB": (40960, 8.0), "A100": (81920, 8.0),
    "L4": (23034, 8.9), "L40": (46068, 8.9), "L40S": (46068, 8.9), "RTX6000-ADA": (49140, 8.9),
    "RTX3090": (24576, 8.6), "RTX4090": (24564, 8.9), "RTX5090": (32607, 12.0), "RTX-PRO-6000": (97887, 12.0),
    "H100": (81559, 9.0), "H100-NVL": (95830, 9.0), "H20": (97871, 9.0), "GH200": (97871, 9.0), "H200": (143771, 9.0),
    "B200": (183359, 10.0), "GB200": (189471, 10.0), "B300": (275040, 10.3),
}  # fmt: skip
"""Memory in MiB as the driver counts it, and compute capability, by name."""


class BoardError(Exception):
    """The description cannot be taken; the text is one sentence with what can."""


def described(text: str) -> Readings:
    """The readings of an empty machine with these GPUs. Raises BoardError."""
    gpus: list[Gpu] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        count, name, memory, compute = _one(part)
        if len(gpus) + count > MOST:
            raise BoardError(f"--gpus {text}: at most {MOST} GPUs are one machine")
        for index in range(len(gpus), len(gpus) + count):
            free = max(memory - HELD_GB, 0.0)
            gpus.append(Gpu(f"{name}-{index}", name, index, memory, free, compute=compute))
    if not gpus:
        raise BoardError(f"--gpus {text!r} describes no GPU; write 8xH200, or 2xL40S,1xH100")
    return Readings(tuple(gpus))


def _one(part: str) -> tuple[int, str, float, float]:
    found = re.fullmatch(r"(?:(\d{1,18})\s*[xX*]\s*)?(\S.*)", part)
    count, kind = (int(found[1] or 1), found[2]) if found else (0, part)
    if count < 1:
        raise BoardError(f"--gpus {part!r}: write a number of GPUs and their kind, e.g. 8xH200 or 8x141GB")
    if size := re.fullmatch(r"(\d{1,4}(?:\.\d+)?)\s*(GB|GiB)", kind, re.IGNORECASE):
        memory = float(size[1]) * (1.0 if size[2].lower() == "gb" else 2**30 / 10**9)
        if memory > 0:
            return count, kind.replace(" ", ""), memory, NEWEST
    name = next((name for name in BOARDS if _plain(name) in (_plain(kind), f"rtx{_plain(kind)}")), None)
    if name is None:
        raise BoardError(
            f"--gpus {part!r}: {kind!r} is no GPU known here; known are {', '.join(BOARDS)}, or write its memory: "
            f"{count}x80GB"
        )
    memory, compute = BOARDS[name]
    return count, name, memory * MIB, compute


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]|nvidia|geforce|sxm\d?|80gb$", "", name.lower())
