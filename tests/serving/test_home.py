"""Where state lies: the XDG rules, secrets that only the owner reads and all processes share, sockets that can open."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import home as home_module
from serving.home import Home, find_home


def at(root: Path) -> Home:
    return Home(root, root / "engines")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_headgate_home_wins_and_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert find_home({"HEADGATE_HOME": "here", "XDG_DATA_HOME": "/data"}).root == tmp_path / "here"
    assert find_home({"HEADGATE_HOME": "~/x"}).root == tmp_path / "me" / "x"


@pytest.mark.parametrize(
    ("environ", "root"),
    [
        ({"XDG_DATA_HOME": "/data"}, "/data/headgate"),
        ({}, "~/.local/share/headgate"),
        ({"XDG_DATA_HOME": ""}, "~/.local/share/headgate"),
        # The XDG rules: a relative value is ignored.
        ({"XDG_DATA_HOME": "data"}, "~/.local/share/headgate"),
        ({"HEADGATE_HOME": "", "XDG_DATA_HOME": "/data"}, "/data/headgate"),
    ],
)
def test_the_xdg_rules_hold(
    environ: dict[str, str], root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = find_home(environ)
    assert found.root == Path(root).expanduser()
    assert found.engines == found.root / "engines"


def test_engines_may_lie_elsewhere(tmp_path: Path) -> None:
    found = find_home({"HEADGATE_HOME": str(tmp_path), "HEADGATE_ENGINES": "/opt/engines"})
    assert (found.root, found.engines) == (tmp_path, Path("/opt/engines"))


def test_finding_makes_nothing(tmp_path: Path) -> None:
    found = find_home({"HEADGATE_HOME": str(tmp_path / "new")})
    assert (found.ledger, found.book) and not (tmp_path / "new").exists()


def test_folders_are_the_owners_alone(tmp_path: Path) -> None:
    home = at(tmp_path / "home")
    home.make()
    home.make()
    folders = [home.root, home.logs, home.models, home.run, home.secrets, home.book.parent]
    assert [mode(folder) for folder in folders] == [0o700] * len(folders)


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_secret_is_made_once_long_and_for_the_owner(tmp_path: Path, loose_umask: None) -> None:
    home = at(tmp_path / "home")
    first = home.secret("permit")
    assert len(bytes.fromhex(first)) == 32
    assert at(tmp_path / "home").secret("permit") == first
    assert home.secret("other") != first
    assert mode(home.secrets / "permit") == 0o600 and mode(home.secrets) == 0o700
    assert sorted(path.name for path in home.secrets.iterdir()) == ["other", "permit"], "no drafts are left"


def test_a_secret_a_person_wrote_is_taken_without_its_line_end(tmp_path: Path) -> None:
    home = at(tmp_path)
    home.make()
    (home.secrets / "admin").write_text("chosen by hand\n")
    assert home.secret("admin") == "chosen by hand"


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_secret_is_refused(content: str, tmp_path: Path) -> None:
    """An empty key would seal anything for anyone."""
    home = at(tmp_path)
    home.make()
    (home.secrets / "permit").write_text(content)
    with pytest.raises(OSError, match="permit is empty; remove it"):
        home.secret("permit")


ASK = """
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from serving.home import Home
home = Home(Path(sys.argv[1]), Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(home.secret("permit"), home.installation())
"""


def test_processes_that_start_together_agree_on_one_secret(tmp_path: Path) -> None:
    root = Path(home_module.__file__).parents[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ASK, str(tmp_path / "home")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
        )
        for _ in range(6)
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=30)[0] for process in started]
    assert len(set(answers)) == 1 and len(answers[0].split()) == 2
    assert len(list((tmp_path / "home" / "secrets").iterdir())) == 2


def test_a_copied_folder_is_another_installation_and_a_linked_one_is_the_same(tmp_path: Path) -> None:
    """`down` in a copy must not end what the other one runs."""
    home = at(tmp_path / "home")
    home.make()
    first = home.installation()
    assert len(bytes.fromhex(first)) == 8 and home.installation() == first
    shutil.copytree(home.root, tmp_path / "copy")
    assert at(tmp_path / "copy").installation() != first
    (tmp_path / "link").symlink_to(home.root)
    assert at(tmp_path / "link").installation() == at(tmp_path / "x" / ".." / "home").installation() == first
    assert home.secret("installation") not in first


def test_two_folders_at_one_place_are_not_one_installation(tmp_path: Path) -> None:
    home = at(tmp_path / "home")
    first = home.installation()
    shutil.rmtree(home.root)
    assert home.installation() != first


def opens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    return path.is_socket()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder with a short path, which pytest's own need not have."""
    folder = Path(
        subprocess.run(["mktemp", "-d", "/tmp/hgXXXXXX"], capture_output=True, text=True, check=True).stdout.strip()
    )
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_a_socket_lies_in_the_state_folder_where_its_path_fits(short: Path) -> None:
    home = at(short / "home")
    home.make()
    assert home.socket("router") == home.run / "router.sock"
    assert opens(home.socket("router"))


def test_a_socket_of_a_long_state_folder_lies_in_a_short_private_one(short: Path) -> None:
    home = at(short / ("long" * 30))
    home.make()
    path = home.socket("router")
    assert path.parent.parent == short and mode(path.parent) == 0o700
    assert path == at(home.root).socket("router"), "every process finds the same one"
    assert opens(path)
    assert opens(home.socket("door")) and home.socket("door") != path


def test_the_limit_is_in_bytes_not_in_letters(short: Path) -> None:
    home = at(short / ("ü" * 45))
    home.make()
    assert len(str(home.run / "router.sock")) < 100
    assert opens(home.socket("router"))


def test_two_installations_share_no_socket(short: Path) -> None:
    first, second = at(short / ("a" * 100)), at(short / ("b" * 100))
    assert first.socket("router") != second.socket("router")


def test_a_long_temporary_folder_does_not_make_the_path_too_long(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("t" * 100)))
    path = at(short / ("a" * 100)).socket("router")
    try:
        assert opens(path)
    finally:
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def test_a_folder_that_is_open_to_others_or_is_a_link_is_not_used(short: Path) -> None:
    home = at(short / ("long" * 30))
    folder = home.socket("router").parent
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="remove it and start again"):
        home.socket("router")
    folder.rmdir()
    (short / "theirs").mkdir(mode=0o700)
    folder.symlink_to(short / "theirs")
    with pytest.raises(PermissionError):
        home.socket("router")
