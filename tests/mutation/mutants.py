"""Small wrong versions of a module, one change each. Pure: source in, source out.

A mutant's name says where and what, without line numbers, so that a list of excused ones stays true when a file grows.
"""

from __future__ import annotations

import ast
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
COMBINED: dict[type[ast.operator], type[ast.operator]] = {
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.Sub: ast.Add, ast.Add: ast.Sub, ast.Mult: ast.Add,
}  # fmt: skip
SWAPPED = {"max": "min", "min": "max", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    """One wrong version."""

    name: str
    make: Callable[[], str]
    """Its source; made only when it is tried."""


def mutants(source: str, path: str, only: Iterable[str] = (), spoken: Iterable[str] = ()) -> list[Mutant]:
    """All of them; `only`: those inside functions and classes of these names. `spoken`: names that hold mere words."""
    found: list[Mutant] = []
    wanted, counts = set(only), Counter[str]()
    tree = ast.parse(source)
    numbers = {id(node): number for number, node in enumerate(ast.walk(tree))}
    for place, node in _nodes(tree, frozenset(spoken)):
        if wanted and not wanted & set(place.split(".")):
            continue
        for what, change in _changes(node):
            name = f"{path} {place or 'module'}: {what}"
            counts[name] += 1
            make = functools.partial(_changed, source, numbers[id(node)], change)
            found.append(Mutant(f"{name} ({counts[name]})" if counts[name] > 1 else name, make))
    return found


def _nodes(tree: ast.AST, spoken: frozenset[str]) -> Iterator[tuple[str, ast.AST]]:
    """Every node with the names around it, but for types, docstrings, imports and words for people."""
    left: list[tuple[str, ast.AST]] = [("", tree)]
    while left:
        place, node = left.pop()
        if isinstance(node, ast.Assign) and spoken & {getattr(one, "id", "") for one in node.targets}:
            continue
        yield place, node
        below = []
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_comment", "decorator_list"):
                continue
            below += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, ast.AST)]
        inside = place
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside = f"{place}.{node.name}".lstrip(".")
        left += [(inside, one) for one in reversed(below) if not _for_people(one)]


def _for_people(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return " " in node.value
    return isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom)


Change = Callable[[ast.AST], ast.AST | None]
"""Changes a copy of the node; None takes the statement out."""


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    said = _said(node)
    if isinstance(node, ast.Compare):
        for number, op in enumerate(node.ops):
            for other in COMPARED.get(type(op), ()):
                yield f"{said}: {type(op).__name__} → {other.__name__}", _comparing(number, other)
    elif isinstance(node, ast.BoolOp):
        other = ast.And if isinstance(node.op, ast.Or) else ast.Or
        yield f"{said}: {type(node.op).__name__} → {other.__name__}", _setting(op=other())
        for number, part in enumerate(node.values):
            yield f"{said}: without {_said(part)}", _without(number)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"{said}: without not", lambda one: one.operand  # type: ignore[attr-defined]
    elif isinstance(node, ast.BinOp) and type(node.op) in COMBINED:
        wrong = COMBINED[type(node.op)]
        yield f"{said}: {type(node.op).__name__} → {wrong.__name__}", _setting(op=wrong())
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        for value in (True, False):
            if not (isinstance(node, ast.While) and value):
                yield f"if {_said(node.test)}: always {value}", _setting(test=ast.Constant(value))
    elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield f"{said}: taken out", lambda _: None
    elif isinstance(node, ast.Return) and node.value is not None:
        yield from _returning(node, said)
    elif isinstance(node, ast.Constant):
        yield from _constants(node)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SWAPPED:
        swapped = SWAPPED[node.func.id]
        yield f"{said}: {swapped}", _setting(func=ast.Name(swapped, ast.Load()))


def _returning(node: ast.Return, said: str) -> Iterator[tuple[str, Change]]:
    given = node.value
    if isinstance(given, ast.Constant) and given.value is None:
        return
    yield f"{said}: returns None", _setting(value=ast.Constant(None))
    if isinstance(given, ast.Compare | ast.BoolOp) or (
        isinstance(given, ast.UnaryOp) and isinstance(given.op, ast.Not)
    ):
        for value in (True, False):
            yield f"{said}: returns {value}", _setting(value=ast.Constant(value))


def _constants(node: ast.Constant) -> Iterator[tuple[str, Change]]:
    value = node.value
    if isinstance(value, bool):
        yield f"{value} → {not value}", _setting(value=not value)
    elif isinstance(value, int | float):
        yield f"{value} → {value + 1}", _setting(value=value + 1)
    elif isinstance(value, str):
        yield f"{value!r} → another word", _setting(value=value + "x")


def _setting(**fields: object) -> Change:
    def change(node: ast.AST) -> ast.AST:
        for name, value in fields.items():
            setattr(node, name, value)
        return node

    return change


def _comparing(number: int, other: type[ast.cmpop]) -> Change:
    def change(node: ast.AST) -> ast.AST:
        node.ops[number] = other()  # type: ignore[attr-defined]
        return node

    return change


def _without(number: int) -> Change:
    def change(node: ast.AST) -> ast.AST:
        del node.values[number]  # type: ignore[attr-defined]
        return node.values[0] if len(node.values) == 1 else node  # type: ignore[attr-defined]

    return change


def _said(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split()) if hasattr(node, "lineno") else type(node).__name__
    return text if len(text) <= 90 else f"{text[:87]}…"


class _Replace(ast.NodeTransformer):
    def __init__(self, wanted: ast.AST, change: Change) -> None:
        self._wanted, self._change = wanted, change

    def visit(self, node: ast.AST) -> ast.AST | None:
        if node is self._wanted:
            made = self._change(node)
            return ast.Pass() if made is None else made
        return self.generic_visit(node)


def _changed(source: str, number: int, change: Change) -> str:
    tree = ast.parse(source)
    (node,) = itertools.islice(ast.walk(tree), number, number + 1)
    return ast.unparse(ast.fix_missing_locations(_Replace(node, change).visit(tree)))
