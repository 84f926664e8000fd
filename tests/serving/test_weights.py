"""Weights: what is here is used without the hub, what is not is fetched or refused in one sentence."""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "model.safetensors": b"w" * 2000, "pytorch_model.bin": b"pickled", "README.md": b"#"}


class Hub(http.server.BaseHTTPRequestHandler):
    """The few answers of a model hub that a download needs."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        if path.startswith("/api/models/site/tiny"):
            siblings = [{"rfilename": name, "size": len(body)} for name, body in FILES.items()]
            info = {"id": "site/tiny", "sha": COMMIT, "siblings": siblings}
            if "/tree/" in path:
                entries = [
                    {"type": "file", "path": n, "size": len(b), "oid": str(i)} for i, (n, b) in enumerate(FILES.items())
                ]
                return self.answer(200, json.dumps(entries).encode())
            return self.answer(200, json.dumps(info).encode())
        name = path.rsplit("/", 1)[1]
        if path.startswith("/site/tiny/resolve/") and name in FILES:
            return self.answer(200, FILES[name], {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"'})
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Asked", (Hub,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hub"), **more}


@pytest.mark.engine
async def test_fetched_once_without_pickles_and_then_found_without_the_hub(
    tmp_path: Path, hub: tuple[str, list[str]], engine_python: Path
) -> None:
    address, asked = hub
    said: list[str] = []
    path = Path(
        await weights.fetch(engine_python, "site/tiny", "", said.append, environment(tmp_path, HF_ENDPOINT=address))
    )
    assert {p.name for p in path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert any("downloading site/tiny" in line for line in said)
    before = len(asked)
    again = await weights.fetch(engine_python, "site/tiny", "", said.append, environment(tmp_path, HF_ENDPOINT=address))
    assert (again, len(asked)) == (str(path), before)
    offline = environment(tmp_path, HF_HUB_OFFLINE="1")
    assert await weights.fetch(engine_python, "site/tiny", COMMIT, said.append, offline) == str(path)


@pytest.mark.engine
async def test_a_download_cut_short_is_not_taken_for_the_weights(
    tmp_path: Path, hub: tuple[str, list[str]], engine_python: Path
) -> None:
    environ = environment(tmp_path, HF_ENDPOINT=hub[0])
    path = Path(await weights.fetch(engine_python, "site/tiny", "", lambda line: None, environ))
    (path / "model.safetensors").unlink()
    assert await weights.fetch(engine_python, "site/tiny", "", lambda line: None, environ) == str(path)
    assert (path / "model.safetensors").exists()


@pytest.mark.engine
@pytest.mark.parametrize(
    ("repo", "more", "words"),
    [
        ("site/tiny", {"HF_ENDPOINT": "http://127.0.0.1:9"}, ["cannot be reached", "full path of a folder"]),
        ("site/tiny", {"HF_HUB_OFFLINE": "1"}, ["HF_HUB_OFFLINE is set", "cache"]),
        ("not an id", {}, ["no id on the hub", "owner/name"]),
    ],
)
async def test_what_cannot_be_had_is_one_sentence_with_the_remedy(
    tmp_path: Path, engine_python: Path, repo: str, more: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(weights.WeightsError) as refused:
        await weights.fetch(engine_python, repo, "", lambda line: None, environment(tmp_path, **more))
    assert all(word in str(refused.value) for word in words) and "\n" not in str(refused.value)


@pytest.mark.engine
async def test_a_repo_the_hub_does_not_know(tmp_path: Path, hub: tuple[str, list[str]], engine_python: Path) -> None:
    with pytest.raises(weights.WeightsError, match="the hub has no site/other"):
        await weights.fetch(
            engine_python, "site/other", "", lambda line: None, environment(tmp_path, HF_ENDPOINT=hub[0])
        )


async def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(weights.WeightsError, match=r"holds no config\.json"):
        await weights.fetch(Path(sys.executable), str(tmp_path), "", lambda line: None, {})
    (tmp_path / "config.json").write_text("{}")
    assert await weights.fetch(Path(sys.executable), str(tmp_path), "", lambda line: None, {}) == str(tmp_path)
    assert weights.is_local(str(tmp_path)) and not weights.is_local("site/tiny")


async def test_a_python_without_the_hub_library_or_none_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(weights.WeightsError, match="huggingface_hub"):
        await weights.fetch(Path(sys.executable), "site/tiny", "", lambda line: None, environment(tmp_path))
    with pytest.raises(weights.WeightsError, match="cannot be started"):
        await weights.fetch(tmp_path / "python", "site/tiny", "", lambda line: None, environment(tmp_path))


def test_weights_whose_index_names_a_missing_file_are_not_whole(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model-1.safetensors").write_bytes(b"1")
    assert weights._whole(tmp_path)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not weights._whole(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"2")
    assert weights._whole(tmp_path)
