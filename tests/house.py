"""The project's own code as the tests of its form read it: sources by path, their imports and definitions."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
Tree = Mapping[str, str]
"""Sources by path from the top of the checkout."""
Check = Callable[[Tree], list[str]]
"""One line for every place that breaks a rule."""
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def tree() -> dict[str, str]:
    """The project's own code."""
    files = [p for folder in ("serving", "router") for p in (ROOT / folder).rglob("*.py")]
    return {str(p.relative_to(ROOT)): p.read_text() for p in sorted(files)}


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def modules_of(sources: Tree) -> set[str]:
    return {module_of(path) for path in sources}


def imports(source: str, modules: set[str] | frozenset[str] = frozenset()) -> Iterator[tuple[str, int]]:
    """Every module imported anywhere in the file, with its line. `from a import b` is a.b where that is a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield (whole if whole in modules else str(node.module)), node.lineno


def within(name: str, allowed: tuple[str, ...] | frozenset[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def fits(path: str, table: Mapping[str, object] | tuple[str, ...]) -> str | None:
    """The longest entry of a table that is this file or a folder it lies in."""
    found = [one for one in table if path == one or (one.endswith("/") and path.startswith(one))]
    return max(found, key=len, default=None)


def definitions(source: str) -> Iterator[tuple[str, Definition]]:
    """Every class and function with its dotted name."""

    def walk(node: ast.AST, above: str) -> Iterator[tuple[str, Definition]]:
        for child in ast.iter_child_nodes(node):
            name = above
            if isinstance(child, Definition):
                name = f"{above}.{child.name}" if above else child.name
                yield name, child
            yield from walk(child, name)

    return walk(ast.parse(source), "")


def lines_of(node: Definition) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def called(node: ast.AST) -> str:
    """The last name of what is called, or ""."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
