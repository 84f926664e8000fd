"""Whether the memory an engine was planned to have is free: it is waited for, and what is missing is named."""

from __future__ import annotations

import pytest

from serving.catalogue import Model, Variant
from serving.gpus import Gpu, Readings
from serving.memory import missing
from serving.placement import Placed
from serving.spare import BEFORE_GB


def placed(device: str = "gpu", share: float = 0.92, **args: object) -> Placed:
    model = Model(name="m", place="local", lanes=("private",), context=4096, output=64, args=args)
    variant = Variant(name="v", memory_gb=8, device="cpu") if device == "cpu" else None
    gpus = ("GPU-a",) if device == "gpu" else ()
    return Placed(model, variant, device, gpus, 4096, 8, share)  # type: ignore[arg-type]


def readings(free: float | None, **more: object) -> Readings:
    return Readings((Gpu("GPU-a", "H200", 3, memory_total_gb=100.0, memory_free_gb=free, **more),))  # type: ignore[arg-type]


def test_all_is_there() -> None:
    assert missing(placed(), readings(99.0), 0.0) == ""
    assert missing(placed("cpu"), Readings(), 9.0) == ""


def test_what_is_missing_is_named_with_who_holds_it() -> None:
    found = missing(placed(), readings(20.0, processes=((41, 2.0), (42, 77.5))), 0.0)
    assert found == "GPU 3 has 20.0 GB free of the 92.6 GB it needs; process 42 77.5 GB, process 41 2.0 GB hold it"
    assert "2.0 GB of main memory are free of the 8 GB" in missing(placed("cpu"), Readings(), 2.0)


def test_what_the_engine_itself_takes_before_it_looks_must_be_free_too() -> None:
    """vLLM compares its share with what is free once it holds the driver's context, and does not start on less."""
    assert missing(placed(), readings(92.0 + BEFORE_GB), 0.0) == ""
    assert missing(placed(), readings(92.0), 0.0) != ""


@pytest.mark.parametrize("share", ["0.5", 0.5])
def test_the_flag_of_the_catalogue_counts(share: object) -> None:
    assert missing(placed(gpu_memory_utilization=share), readings(60.0), 0.0) == ""
    assert missing(placed(share=0.4), readings(45.0), 0.0) == ""


def test_what_cannot_be_read_is_not_missing() -> None:
    assert missing(placed(), readings(None), 0.0) == ""
    assert missing(placed(), Readings(note="the NVIDIA driver does not answer"), 0.0) == ""
