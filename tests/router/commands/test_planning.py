"""`plan --gpus`: a machine that is not here is planned for, so that it can be bought."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from serving.home import Home

Say = Callable[..., Any]


def test_a_described_machine_is_planned_whole(say: Say) -> None:
    said = say("plan", "--gpus", "8xH200", "--model", "deepseek-v3.2", "--json")
    assert said.code == 0
    found = said.json()
    (row,) = found["placed"]
    assert row["gpus"] == [f"GPU {i}" for i in range(8)] and row["kind"] == "H200"
    each = row["each_gpu"]
    assert each["weights_gb"] + each["overhead_gb"] + each["cache_gb"] == pytest.approx(each["given_gb"], abs=0.05)
    assert each["tokens"] > row["context"] and "--tensor-parallel-size 8" in row["command"]
    assert len(found["gpus"]) == 8 and all(gpu["given_gb"] <= gpu["free_gb"] for gpu in found["gpus"])
    shown = say("plan", "--gpus", "8xH200", "--model", "deepseek-v3.2").out
    assert "on GPU 0-7 (H200)" in shown and "of weights" in shown and "requests of the whole context" in shown
    assert "GPU 7 H200:" in shown and "spare" in shown


def test_several_models_share_a_described_machine(say: Say) -> None:
    found = say("plan", "--gpus", "1xH200", "--model", "qwen3.5-4b", "--model", "qwen3.5-9b", "--json").json()
    assert [row["model"] for row in found["placed"]] == ["qwen3.5-4b", "qwen3.5-9b"]
    assert sum(row["share"] for row in found["placed"]) <= 0.92


def test_what_does_not_fit_is_told_with_what_would(say: Say) -> None:
    said = say("plan", "--gpus", "1xL40S", "--model", "glm-4.7", "--model", "qwen3.8-27b", "--json")
    assert said.code == 1
    found = {one["model"]: one for one in said.json()["misfits"]}
    assert "over 16 GPUs of the kind L40S" in found["glm-4.7"]["remedy"]


def test_code_that_nobody_vouched_for_bars_no_purchase(say: Say) -> None:
    said = say("plan", "--gpus", "8xH200", "--model", "kimi-k2.6")
    assert said.code == 0
    (warned,) = [line for line in said.out.splitlines() if "up would not start it yet" in line]
    assert "nobody has vouched for it" in warned and "`revision: <commit>` and `vetted:" in warned
    (row,) = say("plan", "--gpus", "8xH200", "--model", "kimi-k2.6", "--json").json()["placed"]
    assert row["unvetted"] in warned
    assert "up would not" not in say("plan", "--gpus", "8xH200", "--model", "deepseek-v3.2").out


def test_without_models_each_of_the_catalogue_is_tried_alone(say: Say) -> None:
    said = say("plan", "--gpus", "4xH100", "--json")
    found = said.json()
    assert said.code == 0 and {"qwen3.8-27b", "qwen3.5-9b"} <= {row["model"] for row in found["placed"]}
    assert any(one["model"] == "deepseek-v3.2" for one in found["misfits"])


def test_a_machine_that_is_none_is_one_sentence(say: Say, home: Home) -> None:
    said = say("plan", "--gpus", "8xZ900")
    assert said.code == 1 and "'Z900' is no GPU known here" in said.err and "H200" in said.err
