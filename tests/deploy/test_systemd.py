"""deploy/systemd/: the units load, keep what they promise, and start what this checkout has."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

UNITS = ROOT / "deploy" / "systemd"
SERVICES = ("headgate-router", "headgate-door", "headgate-serving", "headgate")
PYTHON = "/usr/lib/headgate/.venv/bin/python"
MOST_EXPOSED = {"headgate-router": 1.5, "headgate-door": 1.5, "headgate-serving": 2.5, "headgate": 4.0}
"""What `systemd-analyze security` may give at most: 0 is shut, 10 is open."""


class Unit(configparser.RawConfigParser):
    """A unit file: keys keep their case, and a key that stands twice has both values, one on each line."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
        self.optionxform = str  # type: ignore[assignment, method-assign]
        seen: dict[tuple[str, str], list[str]] = {}
        section = ""
        for line in (UNITS / name).read_text().splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif "=" in line and not line.startswith("#"):
                key, _, value = line.partition("=")
                seen.setdefault((section, key), []).append(value)
        for (section, key), values in seen.items():
            if not self.has_section(section):
                self.add_section(section)
            self.set(section, key, "\n".join(values))

    def service(self, key: str) -> list[str]:
        return self.get("Service", key, fallback="").splitlines()


def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if not found:
        pytest.skip("systemd-analyze is not here")
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system with the units, systemd's own targets, and a program that stands in for Python."""
    units, program = tmp_path / "etc" / "systemd" / "system", tmp_path / PYTHON.lstrip("/")
    shutil.copytree(UNITS, units)
    own = tmp_path / "usr" / "lib" / "systemd" / "system"
    own.mkdir(parents=True)
    for target in Path("/usr/lib/systemd/system").glob("*.target"):
        shutil.copy(target, own)
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("name", [*(f"{service}.service" for service in SERVICES), "headgate.target"])
def test_systemd_takes_the_unit(name: str, root: Path) -> None:
    done = subprocess.run([analyze(), "verify", f"--root={root}", name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_wrong_unit_would_be_seen(root: Path) -> None:
    unit = root / "etc" / "systemd" / "system" / "headgate-router.service"
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystm=strict"))
    done = subprocess.run([analyze(), "verify", f"--root={root}", unit.name], capture_output=True, text=True)
    assert "ProtectSystm" in done.stderr
    (root / PYTHON.lstrip("/")).unlink()
    done = subprocess.run([analyze(), "verify", f"--root={root}", unit.name], capture_output=True, text=True)
    assert done.returncode != 0


@pytest.mark.parametrize("service", SERVICES)
def test_it_is_shut_as_far_as_its_work_allows(service: str, root: Path) -> None:
    command = [analyze(), "security", "--offline=true", f"--root={root}", f"{service}.service"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    if not found and "offline" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge units offline")
    assert found, done.stderr
    assert float(found[1]) <= MOST_EXPOSED[service]


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_can_gain_privileges_or_write_beyond_its_state(service: str) -> None:
    unit = Unit(f"{service}.service")
    must = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes"}
    must |= {"CapabilityBoundingSet": "", "User": "headgate", "UMask": "0077", "StateDirectoryMode": "0700"}
    assert {key: "".join(unit.service(key)) for key in must} == must
    assert not unit.service("ReadWritePaths")
    assert all(family.startswith("AF_") for family in unit.service("RestrictAddressFamilies")[0].split())
    assert "AF_PACKET" not in unit.service("RestrictAddressFamilies")[0]


@pytest.mark.parametrize("service", ["headgate-router", "headgate-serving"])
def test_router_and_engines_reach_this_machine_alone(service: str) -> None:
    unit = Unit(f"{service}.service")
    assert unit.service("IPAddressDeny") == ["any"]
    assert unit.service("IPAddressAllow") == ["localhost"]
    assert not unit.service("LoadCredential"), "providers' keys are the door's"


def test_the_door_goes_out_but_not_inwards() -> None:
    unit = Unit("headgate-door.service")
    denied = unit.service("IPAddressDeny")[0].split()
    assert "any" not in denied
    assert {"169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"} <= set(denied)
    assert [line.split(":")[0] for line in unit.service("LoadCredential")] == ["openai", "openrouter"]
    assert "/var/lib/headgate/door" in Unit("headgate-router.service").service("InaccessiblePaths")[0]


@pytest.mark.parametrize("service", SERVICES)
def test_what_it_starts_is_there_and_takes_its_options(service: str) -> None:
    program, flag, m, module, *options = shlex.split(Unit(f"{service}.service").service("ExecStart")[0])
    assert (program, flag, m) == (PYTHON, "-P", "-m")
    asked = [sys.executable, "-P", "-m", module, "--help"]
    helped = subprocess.run(asked, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert [option for option in options if option.startswith("--") and option not in helped.stdout] == []


def test_the_target_and_the_simple_unit_do_not_run_together() -> None:
    assert Unit("headgate.target").get("Unit", "Conflicts") == "headgate.service"
    for service in SERVICES[:3]:
        assert Unit(f"{service}.service").get("Unit", "Conflicts") == "headgate.service"
        assert f"{service}.service" in Unit("headgate.target").get("Unit", "Wants")


@pytest.mark.parametrize("name", SERVICES)
def test_no_part_leaves_a_core(name: str) -> None:
    assert Unit(f"{name}.service").service("LimitCORE") == ["1"]
