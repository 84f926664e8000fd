"""The demo model: built whole or not at all, the same every time, and fit for what its record promises."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from serving import demo_model


@pytest.fixture(scope="module")
def built(engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "demo"
    run(engine_python, out)
    return out


def run(python: Path, out: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
    subprocess.run([python, demo_model.__file__, out], env=environ, capture_output=True, check=True)


def test_its_record_says_that_its_words_are_noise() -> None:
    record = demo_model.demo_model()
    assert record.name == "demo" and record.place == "local" and "noise" in record.title
    assert set(record.lanes) == {"private", "cheap"} and {v.device for v in record.variants} == {"cpu", "gpu"}
    assert record.repo == demo_model.REPO


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("disk full")

    monkeypatch.setattr(demo_model, "_tokenizer", fail)
    with pytest.raises(OSError, match="disk full"):
        demo_model.build(tmp_path / "models" / "demo")
    assert list((tmp_path / "models").iterdir()) == []


def test_one_that_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "_tokenizer", lambda: pytest.fail("built again"))
    (tmp_path / "config.json").write_text("{}")
    demo_model.build(tmp_path)


@pytest.mark.engine
def test_it_is_small_whole_and_the_same_every_time(engine_python: Path, built: Path, tmp_path: Path) -> None:
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names <= {p.name for p in built.iterdir()} and list(built.parent.iterdir()) == [built]
    assert sum(p.stat().st_size for p in built.iterdir()) < 2_000_000
    config = json.loads((built / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["max_position_embeddings"] == demo_model.demo_model().context
    run(engine_python, tmp_path / "again")
    assert all((tmp_path / "again" / n).read_bytes() == (built / n).read_bytes() for n in names)


@pytest.mark.engine
def test_every_byte_survives_its_tokenizer_and_its_template_takes_tools(engine_python: Path, built: Path) -> None:
    check = """
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
text = "Grüße 你好 \\U0001f600 \\t\\n {\\"a\\": [1]} " + "".join(map(chr, range(32, 0x250)))
assert tokenizer.decode(tokenizer.encode(text)) == text
tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
messages = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]},
    {"role": "assistant", "content": None, "tool_calls": [call]},
    {"role": "tool", "tool_call_id": "1", "content": "seen"},
]
print(tokenizer.apply_chat_template(messages, tools=[tool], add_generation_prompt=True, tokenize=False))
"""
    done = subprocess.run([engine_python, "-P", "-c", check, built], capture_output=True, text=True, check=True)
    for part in ("Be kind.", '"name": "look"', "OneTwo", '"arguments": {"at": "it"}', "<tool_response>\nseen\n"):
        assert part in done.stdout
    assert done.stdout.count("<|im_start|>system") == 1 and done.stdout.endswith("<|im_start|>assistant\n\n")
