"""The habits of the code: short files, named errors, plain names, docstrings, and nothing of anybody's machine."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.house import ROOT, Check, Definition, Tree, called, definitions, lines_of, tree

CATCHES_ALL = {
    "router/api/protocol.py: Connection._answer": "the outermost handler: one well-formed answer, whatever it was",
    "router/door/searching.py: Search._aside": "whatever a scanner raises, nothing was searched, so nothing leaves",
    "router/gate.py: Gate.search": "whatever fails in a search, nothing was searched, so nothing leaves",
    "router/gate.py: Gate._test": "a scanner that fails closes the door, and is tried again a minute later",
    "router/gate.py: Gate._remember": "what cannot be noted makes its session private, else all of its team",
    "router/pipeline.py: Pipeline.run": "what ends before its decision is in the ledger too; raised again",
    "router/scanner/scanner.py: Scanner.search": "whatever fails in a search is an answer that says so",
    "router/scanner/scanner.py: Scanner.test": "a scanner that fails its self-test closes the door",
    "serving/supervisor.py: Supervisor._kept": "one endpoint's task ends no other's: said, failed, and begun anew",
    "serving/supervisor.py: Supervisor._seen": "what cannot be published of one endpoint hides no other",
    "router/ledger/store.py: Store._write_all": "said as trouble and tried again: without its thread nothing is kept",
}
NO_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "manager", "managers", "base", "misc"})
LONGEST_FUNCTION, LONGEST_FILE = 60, 400
HABIT_FUNCTION, HABIT_FILE = 40, 300
SHORT = 5
"""Lines of a definition that its name and types can explain; a longer public one has a docstring."""
MOST_DEPENDENCIES = 20


def catching_all(sources: Tree) -> list[str]:
    """Places that catch everything, as `path: function`."""

    def walk(node: ast.AST, name: str) -> Iterator[str]:
        caught = [node.type] if isinstance(node, ast.ExceptHandler) else []
        caught += node.args if isinstance(node, ast.Call) and called(node) == "suppress" else []
        kinds = [one for kind in caught for one in (kind.elts if isinstance(kind, ast.Tuple) else [kind])]
        if any(kind is None or getattr(kind, "id", "") in ("Exception", "BaseException") for kind in kinds):
            yield name or "the module"
        for child in ast.iter_child_nodes(node):
            inner = f"{name}.{child.name}".lstrip(".") if isinstance(child, Definition) else name
            yield from walk(child, inner)

    return [f"{path}: {name}" for path, source in sources.items() for name in walk(ast.parse(source), "")]


def too_long(sources: Tree, function: int = LONGEST_FUNCTION, file: int = LONGEST_FILE) -> list[str]:
    found = [f"{p}: {len(s.splitlines())} lines" for p, s in sources.items() if len(s.splitlines()) > file]
    for path, source in sources.items():
        for name, node in definitions(source):
            if not isinstance(node, ast.ClassDef) and lines_of(node) > function:
                found.append(f"{path}: {name} has {lines_of(node)} lines")
    return found


def bad_names(sources: Tree) -> list[str]:
    """Module names that say nothing, and anything inside router/ that is called Router."""
    found = [f"{p}: says nothing of what it owns" for p in sources if NO_NAMES & set(re.split(r"[/.]", p))]
    for path, source in sources.items():
        if not path.startswith("router/"):
            continue
        for node in ast.walk(ast.parse(source)):
            names = [getattr(node, "name", None)] if not isinstance(node, ast.alias) else [node.asname]
            names += [node.arg] if isinstance(node, ast.arg) else []
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.append(node.id if isinstance(node, ast.Name) else node.attr)
            found += [f"{path}: {name} is called Router" for name in names if name and "router" in name.lower()]
    return found


def undocumented(sources: Tree) -> list[str]:
    """Modules without a docstring, and public definitions of more than SHORT lines without one."""
    found = []
    for path, source in sources.items():
        if source.strip() and not ast.get_docstring(ast.parse(source)):
            found.append(f"{path}: has no docstring")
        inside: set[str] = set()
        for name, node in definitions(source):
            if not isinstance(node, ast.ClassDef):
                inside.add(name)
            local = any(name.startswith(f"{outer}.") for outer in inside)
            hidden = any(part.startswith("_") for part in name.split("."))
            if not local and not hidden and lines_of(node) > SHORT and not ast.get_docstring(node):
                found.append(f"{path}: {name} has no docstring")
    return found


def printing(sources: Tree) -> list[str]:
    """`print` in files that are neither a command nor a program of their own."""
    found = []
    for path, source in sources.items():
        if path.startswith("router/commands/") or 'if __name__ == "__main__":' in source:
            continue
        found += [f"{path}:{n.lineno}: prints" for n in ast.walk(ast.parse(source))
                  if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"]  # fmt: skip
    return found


def test_everything_is_caught_only_where_the_table_says() -> None:
    assert sorted(catching_all(tree())) == sorted(CATCHES_ALL)


def test_functions_and_files_are_short() -> None:
    print("over the habit:", *too_long(tree(), HABIT_FUNCTION, HABIT_FILE), sep="\n  ")
    assert too_long(tree()) == []


def test_names_say_what_things_are() -> None:
    assert bad_names(tree()) == []


def test_modules_and_longer_public_definitions_are_described() -> None:
    assert undocumented(tree()) == []


def test_only_programs_print() -> None:
    assert printing(tree()) == []


def test_few_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(project["dependencies"]) < MOST_DEPENDENCIES


def committed() -> dict[str, str]:
    """Every text file that is or would be committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return {str(p.relative_to(ROOT)): p.read_text(errors="replace") for p in paths if p.is_file()}


MACHINE = re.compile(r"(?<![\w.$}~)-])/(?:root|home/[a-z]\w*|Users/[A-Za-z]\w*|work)/\w")
REGISTRY = re.compile(
    r"\bpypi\.(?:org|python)|pythonhosted\.(?:org|com)|download\.pytorch\.(?:org)|registry\.npmjs|conda\.anaconda"
    r"|\bartifactory\b|\bdevpi\b|--(?:extra-)?index-url|https?://registry\."
)


def private_places(sources: Tree, hosts: tuple[str, ...] = ()) -> list[str]:
    """Paths of a developer's machine and names of package registries, `hosts` being this machine's own."""
    found = []
    for path, text in sources.items():
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE.search(line) or REGISTRY.search(line) or any(host in line for host in hosts):
                found.append(f"{path}:{number}: {line.strip()[:100]}")
    return found


def test_nothing_of_this_machine_is_committed() -> None:
    settings = [os.environ.get(name, "") for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")]
    hosts = tuple(host for value in settings if (host := urlsplit(value).hostname))
    assert private_places(committed(), hosts) == []


def test_pins_are_hashes_without_addresses() -> None:
    for path in sorted((ROOT / "deploy").glob("requirements*.txt")):
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.strip().startswith("#")]
        assert not [line for line in lines if "://" in line or line.startswith("-")], path
        pins = [line for line in lines if not line.startswith(" ")]
        assert pins and all(re.match(r"[A-Za-z0-9._-]+==\S+", pin) for pin in pins), path
        assert sum("--hash=sha256:" in line for line in lines) >= len(pins), path


BROKEN: tuple[tuple[Check, str, str], ...] = (
    (catching_all, "router/x.py", "def f():\n    try: ...\n    except Exception: ..."),
    (catching_all, "router/x.py", "def f():\n    try: ...\n    except: ..."),
    (catching_all, "router/x.py", "def f():\n    try: ...\n    except (OSError, BaseException): ..."),
    (catching_all, "router/x.py", "def f():\n    with contextlib.suppress(Exception): ..."),
    (too_long, "router/x.py", "def f():\n" + "    x = 1\n" * 60),
    (too_long, "router/x.py", "x = 1\n" * 401),
    (bad_names, "serving/utils.py", ""),
    (bad_names, "router/common/x.py", ""),
    (bad_names, "router/x.py", "class Router: ..."),
    (bad_names, "router/x.py", "def f(router): ..."),
    (bad_names, "router/x.py", "self.router = 1"),
    (undocumented, "router/x.py", "x = 1"),
    (undocumented, "router/x.py", '"""Doc."""\ndef f():\n' + "    x = 1\n" * 6),
    (printing, "router/x.py", "print(1)"),
    (private_places, "README.md", "see /ro" + "ot/x"),
    (private_places, "deploy/a", "https://py" + "pi.org/simple"),
)


@pytest.mark.parametrize(("check", "path", "source"), BROKEN)
def test_each_check_can_fail(check: Check, path: str, source: str) -> None:
    assert check({path: source}), f"{check.__name__} did not see it"


def test_no_cancellation_is_swallowed() -> None:
    """Python 3.11's `asyncio.wait_for` loses a cancellation that comes as its work ends: what is stopped goes on."""
    calls = [path for path, source in tree().items() if "asyncio.wait_for(" in source]
    assert calls == [], "use `async with asyncio.timeout(…)`"
