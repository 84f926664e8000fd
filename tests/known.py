"""What the code has that a README must name: commands, settings, variables, headers, error codes."""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from router import errors
from router.decision import reasons
from router.errors import HeadgateError
from router.records import Decision, Refusal, Traits
from serving.catalogue import DataClass, Model, Provider, Site
from tests.house import Tree, called

OVERLAYS: dict[str, type[BaseModel]] = {"models": Model, "providers": Provider}
"""Sections of headgate.yaml that are laid over these records, and so are plain mappings in `Site`."""
BOOK_ONLY = frozenset({"door_stopped"})
"""Words that the door writes into its book and answers nobody with."""


def commands(command: Any, above: str = "") -> list[str]:
    if not hasattr(command, "commands"):
        return [above]
    return [one for name, sub in command.commands.items() for one in commands(sub, f"{above} {name}".strip())]


def settings() -> dict[str, str]:
    """Every field of headgate.yaml as the README writes it (`a.b`, `list[].b`, `section.NAME.b`), with its default."""
    return _fields(Site, "")


def _fields(kind: type[BaseModel], before: str) -> dict[str, str]:
    found = dict[str, str]()
    for name, field in kind.model_fields.items():
        path = before + (field.alias or name)
        holder, inner = typing.get_origin(field.annotation), typing.get_args(field.annotation)
        record = next((one for one in (field.annotation, *inner) if _is_record(one)), None)
        overlaid = OVERLAYS.get(name) if kind is Site else None
        if record is None and overlaid is None:
            found[path] = _default(field)
        elif overlaid is not None:
            # What is laid over an entry is described by the entry's own fields; its name is its key.
            found |= {f"{path}.NAME.{n}": _default(f) for n, f in overlaid.model_fields.items() if n != "name"}
        else:
            # A mapping by name; where only some names are allowed, the README says which word stands for them.
            key = "ROUTE" if typing.get_origin(inner[0] if inner else None) is typing.Literal else "NAME"
            prefix = f"{path}.{key}." if holder is dict else f"{path}[]." if holder is tuple else f"{path}."
            found |= _fields(record, prefix)
    return found


def _default(field: FieldInfo) -> str:
    """What holds where nothing is said, as a table shows it: numbers bare, words ticked, nothing as nothing."""
    if field.is_required():
        return "`needed`"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ("", (), {}):
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool | DataClass):
        return f"{value:g}"
    shown = value.name if isinstance(value, DataClass) else str(value).lower() if isinstance(value, bool) else value
    return f"`{shown if isinstance(shown, str) else '[' + ', '.join(shown) + ']'}`"


def uncommented(text: str) -> str:
    """A headgate.yaml with every setting that stands in its comments switched on; sentences stay comments.

    What is indented and looks like a setting is taken for one, so that a misspelt name is found.
    """
    lines = []
    for line in text.splitlines():
        found = re.match(r"( *)# ( *)((?:- )?([a-z][\w.-]*):(?: .*)?)$", line)
        setting = found and (found[1] or found[2] or found[4] in Site.model_fields)
        lines.append(found[1] + found[2] + found[3] if found and setting else line)
    return "\n".join(lines) + "\n"


def _is_record(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, BaseModel)


def literals(sources: Tree) -> Iterator[tuple[str, str]]:
    """Every text constant with its file."""
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                yield path, node.value.decode("latin-1") if isinstance(node.value, bytes) else node.value


def variables(sources: Tree, launcher: str) -> set[str]:
    """HEADGATE_* of the code and the launcher; what the launcher sets for itself is nobody's setting."""
    found = {text for _, text in literals(sources) if re.fullmatch(r"HEADGATE_[A-Z_]+", text)}
    own = set(re.findall(r"\b(HEADGATE_[A-Z_]+)=", launcher))
    return found | set(re.findall(r"\$\{?(HEADGATE_[A-Z_]+)", launcher)) - own


def headers(sources: Tree) -> set[str]:
    return {text for _, text in literals(sources) if re.fullmatch(r"x-(headgate|ratelimit)-[a-z-]+|x-request-id", text)}


def coded(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """The expressions of a node that give an error code, and the name of what is called with it."""
    if isinstance(node, ast.Call):
        yield from ((word.value, called(node)) for word in node.keywords if word.arg == "code")
        if called(node) in ("_Cut",) and node.args:
            yield node.args[-1], called(node)
    if isinstance(node, ast.Dict):
        yield from ((v, "") for k, v in zip(node.keys, node.values, strict=True) if getattr(k, "value", "") == "code")
    if isinstance(node, ast.Assign):
        named = {"code", "error"} & {_target(target) for target in node.targets}
        yield from ((node.value, "") for _ in named if isinstance(node.value, ast.Constant | ast.BoolOp))
    if isinstance(node, ast.AnnAssign) and _target(node.target) == "_FAILURES" and isinstance(node.value, ast.Tuple):
        yield from (
            (row.elts[3], getattr(row.elts[1], "id", "")) for row in node.value.elts if isinstance(row, ast.Tuple)
        )


def _target(node: ast.AST) -> str:
    """The name that is assigned to: of a variable, an attribute or a key."""
    if isinstance(node, ast.Subscript):
        return str(getattr(node.slice, "value", ""))
    return str(getattr(node, "id", getattr(node, "attr", "")))


def codes(sources: Tree) -> dict[str, set[int]]:
    """Every error code of router/ with the statuses it can have as far as they stand in the code; empty is not said."""
    kinds = {n: k for n, k in vars(errors).items() if inspect.isclass(k) and issubclass(k, HeadgateError)}
    found: dict[str, set[int]] = {each.code: set() for each in kinds.values()}
    for each in kinds.values():
        found[each.code].add(each.status)
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)) if path.startswith("router/") else ():
            for expression, kind_name in coded(node):
                for part in ast.walk(expression):
                    code = part.value if isinstance(part, ast.Constant) else None
                    if isinstance(code, str) and re.fullmatch(r"[a-z]+(_[a-z]+)+", code) and code not in BOOK_ONLY:
                        kind = kinds.get(kind_name)
                        found.setdefault(code, set()).update({kind.status} if kind else ())
    for code, status in codes_of_rules(sources):
        found.setdefault(code, set()).add(status)
    return found


def codes_of_rules(sources: Tree) -> Iterator[tuple[str, int]]:
    """What a caller is told where nothing but this rule's refusal is left."""
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)) if path.startswith("router/decision/") else ():
            if isinstance(node, ast.Call) and called(node) in ("refuse", "Refusal"):
                position = 1 if called(node) == "refuse" else 2
                passing = any(word.arg == "passing" and getattr(word.value, "value", False) for word in node.keywords)
                rule = getattr(node.args[position], "value", None)
                # The one rule with two names chooses between them just before, and both can pass.
                for name in (rule,) if rule else ("not_ready", "door_closed") if passing else ():
                    told = reasons.refused(refused_by(str(name), passing), 1)
                    yield told.code, told.status


def refused_by(rule: str, passing: bool) -> Decision:
    traits = Traits(DataClass.private, "", frozenset(), frozenset(), 1, None, None, None)
    return Decision(traits, (), (Refusal("m", "e", rule, "because", passing=passing),), "cheapest", "", None)


def codes_of_door(sources: Tree) -> set[str]:
    """Codes that only the door gives."""
    inside = {p: s for p, s in sources.items() if p.startswith("router/door/")}
    outside = {p: s for p, s in sources.items() if p not in inside}
    return set(codes(sources)) - set(codes(outside))
