"""`./headgate`: from a bare checkout to a running command line, wherever it lies and from wherever it is called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

LAUNCHER = ROOT / "headgate"


def copy(to: Path, *, environment: Path | None = None) -> Path:
    """A checkout: what the launcher needs of it, with an environment that is there already where one is given."""
    to.mkdir(parents=True)
    for name in ("router", "serving", "deploy"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("headgate", "models.yaml", "pyproject.toml"):
        shutil.copy2(ROOT / name, to / name)
    if environment is not None:
        (to / ".venv" / "bin").mkdir(parents=True)
        wrapper = to / ".venv" / "bin" / "python"
        wrapper.write_text(f'#!/bin/sh\nexec "{environment}" "$@"\n')
        wrapper.chmod(0o755)
        shutil.copy2(to / "deploy" / "requirements.txt", to / ".venv" / "pins.txt")
    return to


def run(launcher: Path, *args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HEADGATE_", "PYTHON", "VIRTUAL_ENV"))}
    clean |= {"HEADGATE_HOME": str(cwd / "home"), **environment}
    return subprocess.run([launcher, *args], cwd=cwd, env=clean, capture_output=True, text=True, timeout=240)


def test_it_is_posix_shell_and_short() -> None:
    assert LAUNCHER.read_text().startswith("#!/bin/sh\n") and os.access(LAUNCHER, os.X_OK)
    assert len(LAUNCHER.read_text().splitlines()) < 60
    for shell in ("sh", "dash"):
        if shutil.which(shell):
            subprocess.run([shell, "-n", str(LAUNCHER)], check=True)


def test_it_works_from_elsewhere_through_links_and_with_spaces(tmp_path: Path) -> None:
    checkout = copy(tmp_path / "a check out", environment=Path(sys.executable))
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    # What lies where somebody happens to be must not be taken for ours.
    (elsewhere / "router").mkdir()
    (elsewhere / "router" / "__init__.py").write_text("raise SystemExit('the wrong router')")
    (elsewhere / "yaml.py").write_text("raise SystemExit('the wrong yaml')")
    link, second = tmp_path / "link", elsewhere / "hg"
    link.symlink_to(checkout / "headgate")
    second.symlink_to(Path("..") / "link")
    for launcher in (checkout / "headgate", link, second):
        done = run(launcher, "config", "check", cwd=elsewhere)
        assert done.returncode == 0 and "no headgate.yaml; the defaults: correct" in done.stdout, done.stderr
        assert done.stderr == ""


def test_the_exit_code_and_the_arguments_pass_through(tmp_path: Path) -> None:
    checkout = copy(tmp_path / "c", environment=Path(sys.executable))
    done = run(checkout / "headgate", "keys", "create", "--team", "a  b", "--json", cwd=tmp_path)
    assert '"team": "a  b"' in done.stdout
    done = run(checkout / "headgate", "keys", "set", "nobody", "--budget", "1", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("headgate: no key has the id")


def test_no_python_is_one_sentence(tmp_path: Path) -> None:
    checkout = copy(tmp_path / "c")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "readlink", "dirname", "cmp", "sed", "cp"):
        (tools / name).symlink_to(str(shutil.which(name)))
    done = run(checkout / "headgate", "--help", cwd=tmp_path, PATH=str(tools))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "Python 3.11 or newer" in done.stderr


@pytest.mark.long
def test_it_makes_repairs_and_renews_its_environment(tmp_path: Path) -> None:
    checkout = copy(tmp_path / "a check out")
    python, pins = checkout / ".venv" / "bin" / "python", checkout / "deploy" / "requirements.txt"
    # Two at once, since nothing stops people (or units) from that.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HEADGATE_", "PYTHON", "VIRTUAL_ENV"))}
    both = [subprocess.Popen([checkout / "headgate", "--help"], env=clean, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [child.wait(240) for child in both] == [0, 0]

    def made(**environment: str) -> bool:
        done = run(checkout / "headgate", "config", "check", cwd=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        return "making the environment" in done.stderr

    assert not made()
    pins.write_text(pins.read_text() + "# another pin\n")
    assert made() and not made()
    # Killed in the middle: the packages are not all there, and nothing says they are.
    (checkout / ".venv" / "pins.txt").unlink()
    shutil.rmtree(next(checkout.glob(".venv/lib/python3*/site-packages/uv")))
    assert made() and not made()
    python.unlink()
    assert made() and not made()
    shutil.rmtree(checkout / ".venv" / "lib")
    assert made() and not made()


@pytest.mark.long
def test_pip_install_gives_the_same_command(tmp_path: Path) -> None:
    source = copy(tmp_path / "source")
    shutil.copy2(ROOT / "README.md", source / "README.md")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(tmp_path / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, str(source)], check=True, cwd=tmp_path)
    command = tmp_path / "venv" / "bin" / "headgate"
    done = run(command, "plan", "--model", "qwen3.5-0.8b", cwd=tmp_path)
    assert done.returncode == 0 and "-m vllm.entrypoints.openai.api_server" in done.stdout, done.stderr
    found = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-E", "-c",  # -E: the launcher that runs the tests sets PYTHONPATH
         "from serving import catalogue; print(catalogue.shipped_path())"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(tmp_path / "venv") in found.stdout
    done = run(command, "test", cwd=tmp_path)
    assert done.returncode == 1 and "run ./headgate test in a checkout" in done.stderr
