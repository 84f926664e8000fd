"""Machines that are described: what a person may write, and what they are told where it is none."""

from __future__ import annotations

import pytest

from serving.boards import BOARDS, BoardError, described


def test_a_machine_is_written_as_numbers_and_kinds() -> None:
    found = described("2xL40S, 1xH100").gpus
    assert [g.name for g in found] == ["L40S", "L40S", "H100"] and [g.index for g in found] == [0, 1, 2]
    assert len({g.uuid for g in found}) == 3 and [g.compute for g in found] == [8.9, 8.9, 9.0]
    assert all(0 < (g.memory_free_gb or 0) < (g.memory_total_gb or 0) for g in found)
    assert 150 < (described("8xH200").gpus[0].memory_total_gb or 0) < 151


@pytest.mark.parametrize("text", ["h200", "H200", "1 x h200", "NVIDIA H200", "1*H200"])
def test_names_are_read_kindly(text: str) -> None:
    (found,) = described(text).gpus
    assert found.name == "H200"


def test_a_card_is_found_without_its_prefix() -> None:
    assert described("4090,RTX 5090,a100-80gb,A100 40GB").gpus[0].name == "RTX4090"
    assert [g.name for g in described("5090,A100-80GB,A100-40GB").gpus] == ["RTX5090", "A100", "A100-40GB"]


def test_a_kind_that_is_not_known_is_given_by_its_memory() -> None:
    found = described("8x141GB").gpus
    assert len(found) == 8 and found[0].memory_total_gb == 141 and (found[0].compute or 0) > 12
    assert described("1x80GiB").gpus[0].memory_total_gb == pytest.approx(85.9, abs=0.1)


@pytest.mark.parametrize("text", ["8xZ900", "Voodoo", "0xH200", "x", ",", "8x", "8x0GB", "-1xH100", "9999xH100", "  "])
def test_what_is_no_machine_is_one_sentence(text: str) -> None:
    with pytest.raises(BoardError) as refused:
        described(text)
    assert "\n" not in str(refused.value) and str(refused.value).startswith("--gpus")


def test_the_sentence_names_what_is_known() -> None:
    with pytest.raises(BoardError, match="Z900") as refused:
        described("8xZ900")
    assert all(name in str(refused.value) for name in BOARDS)


def test_of_too_many_gpus_it_is_said_that_they_are_too_many() -> None:
    for text in ("65xH100", "99999xH100", f"{10**17}x80GB"):
        with pytest.raises(BoardError, match="at most 64 GPUs are one machine"):
            described(text)
