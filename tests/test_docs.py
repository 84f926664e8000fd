"""The READMEs say what the code does, both ways: nothing undocumented, and nothing documented that is not there.

Every check is a function from texts to a list of problems; `test_each_check_can_fail` hands it small broken ones.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from router import cli
from router.ledger.metrics import Metrics
from serving.home import find_home
from tests import known
from tests.house import ROOT, tree

PAGES = ("README.md", "serving/README.md", "router/README.md", "tests/README.md", "benchmarks/README.md")
HOUSES = PAGES[:3]
ELSEWHERE = frozenset({"headgate.yaml", "body.json"})
"""Files that people have, not the checkout."""
ALLOWED_ONLY = frozenset({"HEADGATE_INSTALLATION", "HEADGATE_INSTANCE"})
"""Marks our own processes carry, set by ourselves: serving/README.md's to explain."""
NEVER_ALONE = frozenset({"other_lane", "other_model", "batch_waits"})
"""Rules that no caller is answered with: beside their refusal there is always one that says more, or a local model."""
BETWEEN_US = frozenset({"x-headgate-permit", "x-headgate-door"})
"""Between router and door: router/README.md's to explain."""

# ---- reading a page


def section(page: str, title: str) -> str:
    """What stands under `## title`, or "" where there is no such section."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def blocks(text: str) -> list[tuple[str, str]]:
    """Fenced code blocks: language and content."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def rows(text: str) -> list[list[str]]:
    """The cells of all tables, without their heads."""
    lines = [line.strip() for line in text.splitlines()]
    ruler = [i for i, line in enumerate(lines) if re.fullmatch(r"\|[\s|:-]+\|", line)]
    heads = {i - 1 for i in ruler} | set(ruler)
    cells = [line[1:-1].split("|") for i, line in enumerate(lines) if line.startswith("|") and i not in heads]
    return [[cell.strip() for cell in row] for row in cells]


def ticked(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def both_ways(what: str, wanted: Iterable[str], found: Iterable[str], allowed: Iterable[str] = ()) -> list[str]:
    wanted, found = set(wanted), list(found)
    problems = [f"{what}: {name} is not described" for name in sorted(wanted - set(found))]
    problems += [f"{what}: there is no {name}" for name in sorted(set(found) - wanted - set(allowed))]
    twice = sorted({name for name in found if found.count(name) > 1})
    return problems + [f"{what}: {name} stands there twice" for name in twice]


# ---- the checks


def house(pages: Mapping[str, str], files: Iterable[str]) -> list[str]:
    """The house blocks of all pages name every Python file, and nothing that is not there."""
    files = set(files)
    folders = {f"{parent}/" for file in files for parent in map(str, Path(file).parents) if parent != "."}
    listed, problems = set[str](), []
    for page, text in pages.items():
        here = str(Path(page).parent)
        lines = [line for _, block in blocks(section(text, "The house")) for line in block.splitlines() if line.strip()]
        if not lines:
            problems.append(f"{page}: has no house block")
        for line in lines:
            for name in re.split(r"\s{2,}", line.strip())[0].split():
                found = {name, f"{here}/{name}"} & (files | folders)
                problems += [] if found else [f"{page}: there is no {name}"]
                listed |= found
    python = {f for f in files if f.endswith(".py") and f.startswith(("serving/", "router/"))}
    missing = sorted(f for f in python - listed if not f.endswith("__init__.py"))
    return problems + [f"no house block names {file}" for file in missing]


def commands(page: str, has: Iterable[str]) -> list[str]:
    names = [name for row in rows(section(page, "Commands")) for name in ticked(row[0])]
    return both_ways("command", has, [re.sub(r"^(\./)?headgate ", "", name) for name in names])


def settings(page: str, fields: Iterable[str], variables: Iterable[str]) -> list[str]:
    names = [name for row in rows(section(page, "Settings")) for name in ticked(row[0])]
    return both_ways("setting", {*fields, *variables} - ALLOWED_ONLY, names, ALLOWED_ONLY)


def defaults(page: str, has: Mapping[str, str]) -> list[str]:
    """The second cell of a setting's row is its default; nothing where it has none."""
    shown = {name: row[1] for row in rows(section(page, "Settings")) for name in ticked(row[0])}
    return [
        f"setting: {name} is {has[name] or 'nothing'} by default, not {cell or 'nothing'}"
        for name, cell in shown.items() if has.get(name, cell) != cell
    ]  # fmt: skip


def headers(page: str, has: Iterable[str]) -> list[str]:
    names = [name for row in rows(section(page, "Headers")) for name in ticked(row[0])]
    return both_ways("header", set(has) - BETWEEN_US, names)


def documented_codes(text: str) -> list[tuple[str, set[int]]]:
    """Each code of an errors table with its statuses: from the first two cells, whichever comes first."""
    found = []
    for row in rows(text):
        head = " ".join(row[:2])
        statuses = {int(number) for number in re.findall(r"\b[2-5]\d\d\b", head)}
        found += [(code, statuses) for code in ticked(head) if re.fullmatch(r"[a-z_]+", code)]
    return found


def error_codes(page: str, door_page: str, has: Mapping[str, set[int]], of_door: Iterable[str]) -> list[str]:
    """Every code with its statuses; those only the door gives may stand in its own page instead."""
    listed = documented_codes(section(page, "Errors"))
    of_door_listed = documented_codes(section(door_page, "What the door refuses"))
    names, door_names = [code for code, _ in listed], [code for code, _ in of_door_listed]
    problems = both_ways("error code", set(has) - set(of_door) - NEVER_ALONE, names, {*of_door, *NEVER_ALONE})
    problems += both_ways("error code of the door", set(of_door) - set(names), door_names)
    for code, statuses in listed + of_door_listed:
        if has.get(code) and statuses != has[code]:
            problems.append(f"error code: {code} has status {sorted(has[code])}, not {sorted(statuses)}")
    return problems


def paths(pages: Mapping[str, str], root: Path) -> list[str]:
    """Relative links and paths in backticks lead to something; a `*` to at least one."""
    problems = []
    for page, text in pages.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]
        titles = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in re.findall(r"^#+ (.*)", prose, re.M)}
        problems += [f"{page}: no heading is #{a}" for a in re.findall(r"\]\(#([^)]+)\)", prose) if a not in titles]
        names = [n for n in ticked(prose) if re.fullmatch(r"[\w.*-]+(/[\w.*-]+)*\.(py|md|ya?ml|toml|txt|json|sh)", n)]
        names += [n for n in ticked(prose) if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/", n)]
        here = (root / page).parent
        gone = [link for link in links if link and not (here / link).exists()]
        # In prose a path is given from the page's own folder or from the top.
        gone += [n for n in names if not any(here.glob(n.rstrip("/"))) and not any(root.glob(n.rstrip("/")))]
        problems += [f"{page}: there is no {name}" for name in gone if name not in ELSEWHERE]
    return problems


def command_lines(text: str) -> Iterator[list[str]]:
    """Every call of headgate in the shell blocks, as words."""
    for language, block in blocks(text):
        if language not in ("sh", "bash", "shell", "console"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|;&<>()")
            lexer.commenters, lexer.wordchars = "#", lexer.wordchars + "…:[]{},@!$%"
            yield from calls(list(lexer))


def calls(words: list[str]) -> Iterator[list[str]]:
    found: list[str] | None = None
    for word in [*words, ";"]:
        if re.fullmatch(r"[|;&<>()]+", word):
            if found is not None:
                yield found
            found = None
        elif found is not None:
            found.append(word)
        elif word in ("headgate", "./headgate"):
            found = []


def wrong_calls(pages: Mapping[str, str], app: Any) -> list[str]:
    """Command lines that the real command line would not take."""
    found = []
    for page, text in pages.items():
        for words in command_lines(text):
            if problem := refusal(app, words):
                found.append(f"{page}: headgate {' '.join(words)}: {problem}")
    return found


def refusal(command: Any, words: list[str]) -> str:
    """Why the command line would not take these words, or ""."""
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"no such command as {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    if words == ["--help"]:
        return ""
    try:
        command.make_context("headgate", list(words))
    except typer.Exit:
        return ""
    except Exception as wrong:  # the kinds of error belong to typer's inner copy of click
        return str(wrong) or type(wrong).__name__
    return ""


# ---- the tests


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {page: (ROOT / page).read_text() for page in PAGES}


@pytest.fixture(scope="module")
def app() -> Any:
    return typer.main.get_command(cli.build())


def checkout() -> set[str]:
    """All files, as they are named in a house block."""
    left_out = {".git", ".venv", "__pycache__"}
    found = (p.relative_to(ROOT) for p in ROOT.rglob("*") if not left_out & set(p.relative_to(ROOT).parts))
    return {str(p) for p in found if (ROOT / p).is_file()}


def test_the_house_is_described(pages: dict[str, str]) -> None:
    assert house({page: pages[page] for page in HOUSES}, checkout()) == []


def test_every_command_is_described(pages: dict[str, str], app: Any) -> None:
    assert commands(pages["README.md"], known.commands(app)) == []


def test_every_setting_is_described(pages: dict[str, str]) -> None:
    variables = known.variables(tree(), (ROOT / "headgate").read_text())
    assert settings(pages["README.md"], known.settings(), variables) == []
    assert [name for name in ALLOWED_ONLY if f"`{name}`" not in pages["serving/README.md"]] == []


def test_every_setting_has_its_default_in_its_row(pages: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jo")
    folder = f"~/{find_home({}).root.relative_to('/home/jo')}"
    engines = find_home({"HEADGATE_HOME": "/gate"}).engines
    of_home = {"HEADGATE_HOME": f"`{folder}`", "HEADGATE_ENGINES": f"`$HEADGATE_HOME/{engines.relative_to('/gate')}`"}
    assert defaults(pages["README.md"], known.settings() | of_home) == []


def test_every_header_is_described(pages: dict[str, str]) -> None:
    assert headers(pages["README.md"], known.headers(tree())) == []
    assert [name for name in BETWEEN_US if f"`{name}`" not in pages["router/README.md"]] == []


def test_every_error_code_is_described(pages: dict[str, str]) -> None:
    sources = tree()
    of_door = known.codes_of_door(sources)
    assert error_codes(pages["README.md"], pages["router/README.md"], known.codes(sources), of_door) == []


def test_every_metric_is_described() -> None:
    told = {ticked(row[0])[0] for row in rows(section((ROOT / "deploy" / "README.md").read_text(), "Metrics"))}
    bare = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in Metrics().names()}
    assert told == {name for name in bare if not name.endswith("_created")}


def test_every_path_leads_somewhere(pages: dict[str, str]) -> None:
    assert paths(pages, ROOT) == []
    assert rows(section(pages["README.md"], "Where do I change X"))


def test_command_lines_can_be_typed(pages: dict[str, str], app: Any) -> None:
    assert any(command_lines(text) for text in pages.values())
    assert wrong_calls(pages, app) == []


def test_every_command_has_an_example_that_can_be_typed(app: Any) -> None:
    for name in known.commands(app):
        command = app
        for word in name.split():
            command = command.commands[word]
        found = re.search(r"Example: (.*)", command.help or "")
        assert found, f"headgate {name} has no example"
        (words, *_) = command_lines(f"```sh\n{found[1]}\n```\n")
        assert words[: len(name.split())] == name.split()
        assert refusal(app, words) == "", name


def written(codes: Mapping[str, set[int]], app: Any) -> str:
    """A README of the form that is asked for, made from the code."""
    cells = [("Commands", [f"| `headgate {name}` | x |" for name in known.commands(app)])]
    names = sorted(set(known.settings()) | known.variables(tree(), "$HEADGATE_PYTHON") - ALLOWED_ONLY)
    cells.append(("Settings", [f"| `{name}` | x |" for name in names]))
    cells.append(("Headers", [f"| `{name}` | x |" for name in sorted(known.headers(tree()) - BETWEEN_US)]))
    cells.append(("Errors", [f"| {'/'.join(map(str, sorted(s)))} | `{c}` |" for c, s in sorted(codes.items())]))
    tables = [f"## {title}\n\n| a | b |\n| --- | --- |\n" + "\n".join(lines) for title, lines in cells]
    return "# X\n\n" + "\n\n".join(tables) + "\n"


def test_a_page_made_from_the_code_passes_and_every_line_of_it_counts(app: Any) -> None:
    sources = tree()
    codes, fields, names = known.codes(sources), known.settings(), known.commands(app)
    variables, sent = known.variables(sources, "$HEADGATE_PYTHON"), known.headers(sources)
    door = known.codes_of_door(sources)

    def problems(page: str) -> list[str]:
        found = commands(page, names) + settings(page, fields, variables) + headers(page, sent)
        return found + error_codes(page, "", codes, door)

    page = written(codes, app)
    assert problems(page) == []
    for line in page.splitlines():
        if line.startswith("| ") and "`" in line and not any(f"`{name}`" in line for name in NEVER_ALONE):
            assert problems(page.replace(line + "\n", "")), f"nobody misses {line}"
            assert problems(page.replace(line, line.replace("`", "`zz", 1))), f"nobody minds a wrong {line}"


def table(title: str, line: str) -> str:
    return f"## {title}\n\n| a | b |\n| --- | --- |\n{line}\n"


def named(page: str, block: str) -> list[str]:
    return house({page: f"## The house\n```\n{block}\n```\n"}, {"serving/a.py", "router/x/b.py", "models.yaml"})


BROKEN: tuple[tuple[Callable[[str], list[str]], str, str], ...] = (
    (lambda text: named("README.md", text), "serving/  x\nserving/a.py router/x/b.py  y", "serving/  x"),
    (lambda text: named("README.md", text), "serving/a.py router/x/b.py  y", "serving/a.py router/x/b.py no.py  y"),
    (lambda text: named("README.md", text), "serving/a.py router/x/b.py  y", ""),
    (lambda text: named("router/README.md", text), "serving/a.py  x\nx/b.py  y", "serving/a.py  x\nb.py  y"),
    (lambda text: defaults(text, {"a.b": "16"}), table("Settings", "| `a.b` | 16 |"),
     table("Settings", "| `a.b` | 8 |")),
    (lambda text: defaults(text, {"a.b": ""}), table("Settings", "| `a.b` | | x |"),
     table("Settings", "| `a.b` | x |")),
    (lambda text: error_codes(text, "", {"a_b": {400}}, ()), table("Errors", "| `a_b` | 400 |"),
     table("Errors", "| `a_b` | 404 |")),
    (lambda text: error_codes("", text, {"a_b": {400}}, {"a_b"}),
     table("What the door refuses", "| 400 | `a_b` |"), ""),
    (lambda text: paths({"README.md": text}, ROOT), "see [models](models.yaml)", "see [models](model.yaml)"),
    (lambda text: paths({"router/README.md": text}, ROOT), "see `api/body.py`", "see `api/bodies.py`"),
    (lambda text: paths({"router/README.md": text}, ROOT), "see [it](../models.yaml)", "see [it](models.yaml)"),
    (lambda text: paths({"README.md": text}, ROOT), "see [it](#a-b)\n## A b", "see [it](#a-b)\n## A"),
    (lambda text: paths({"README.md": text}, ROOT), "see `deploy/requirements*.txt`", "see `deploy/pins*.txt`"),
    (lambda text: paths({"README.md": text}, ROOT), "see `router/decision/`", "see `router/decisions/`"),
)  # fmt: skip


@pytest.mark.parametrize(("check", "good", "bad"), BROKEN)
def test_each_check_can_fail(check: Callable[[str], list[str]], good: str, bad: str) -> None:
    assert check(good) == []
    assert check(bad) != []


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("./headgate up --detach --wait", True),
        ("$ headgate keys create --team A --data-class public   # words", True),
        ("""echo '{"model": "auto"}' | headgate explain --data-class public""", True),
        ("headgate explain < body.json", True),
        ("headgate down; headgate up --model x", True),
        ('headgate chat --key hg_… "Hello, you"', True),
        ("headgate up --detatch", False),
        ("headgate keys", False),
        ("headgate keys make", False),
        ("headgate keys set", False),
        ("true && headgate status --yaml", False),
        ("headgate up --port many", False),
        ("headgate up \\\n  --no-such-thing", False),
    ],
)
def test_a_command_line_is_read_as_a_shell_would(line: str, good: bool, app: Any) -> None:
    text = f"```sh\n{line}\n```\n"
    assert [*command_lines(text)], "it was not seen"
    assert (wrong_calls({"README.md": text}, app) == []) is good
