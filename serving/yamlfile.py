"""YAML files read strictly: every mistake is one sentence with the file, the line and what is allowed.

Knows nothing of the catalogue; it turns a file into data that pydantic checks, and pydantic's findings into lines.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Path_ = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

# Aliases let a few lines stand for billions of values, and a parser follows nesting by recursion.
MOST_VALUES = 100_000
DEEPEST = 64
KINDS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}
MERGE = "tag:yaml.org,2002:merge"

SENTENCES = {
    "bool": "must be true or false",
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a number",
    "string": "must be text",
    "date": "must be a date such as 2027-06-30",
    "list": "must be a list such as [a, b]",
    "tuple": "must be a list such as [a, b]",
    "frozen": "must be a list such as [a, b]",
    "dict": "must be a mapping of settings",
    "model": "must be a mapping of settings",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "must name at least {min_length}",
    "literal_error": "must be {one_of}",
    "string_pattern_mismatch": "must {shape}",
}
"""Our words for pydantic's types of errors, by the whole type or its first word; others keep pydantic's own."""
SHAPES = {
    r"^(https?://|unix:/).+": "begin with http://, https:// or unix:/",
    r"^[a-z0-9][a-z0-9-]{0,39}$": "be of small letters, digits and -, at most 40",
    r"^[a-z0-9-]{1,32}$": "be of small letters, digits and -, at most 32",
    r"^(region:[a-z0-9-]{1,32}|tag:[a-z0-9-]{1,32}|no-training|no-retention)$":
        "be region:NAME, tag:NAME, no-training or no-retention",
    r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$": "begin with a letter or digit, then letters, digits and . _ : / @ - only",
}  # fmt: skip
"""What a text must look like, by its pattern."""


class ConfigError(Exception):
    """A file a person wrote says something Headgate cannot take; the text names file and line."""


class YamlFile:
    """One parsed file: its data, and the line of every key and item."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.lines: dict[Path_, int] = {(): 1}
        self._values = 0
        try:
            self._refuse_depth(text)
            root = yaml.compose(text, Loader=yaml.CSafeLoader)
        except yaml.MarkedYAMLError as broken:
            line = broken.problem_mark.line + 1 if broken.problem_mark else 1
            tabbed = re.match(r" *\t", "".join(text.splitlines()[line - 1 : line]))
            problem = "indent with spaces, not tabs" if tabbed else broken.problem
            raise ConfigError(f"{path}:{line}: not valid YAML: {problem}") from broken
        except yaml.YAMLError as broken:
            raise ConfigError(f"{path}: not valid YAML: {_first_line(broken)}") from broken
        self.data: Any = {} if root is None else self._build(root, ())

    def _refuse_depth(self, text: str) -> None:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise self.error((), f"nested more than {DEEPEST} deep", line)

    def _build(self, node: yaml.Node, path: Path_) -> Any:
        self._values += 1
        line = node.start_mark.line + 1
        if self._values > MOST_VALUES or len(path) > DEEPEST:
            raise self.error((), "its aliases unfold without end; write the values out", line)
        if isinstance(node, yaml.CollectionNode) and node.tag not in KINDS:
            raise self.error(path, f"the tag {node.tag} is not allowed; only plain values are", line)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.lines[(*path, index)] = item.start_mark.line + 1
            return [self._build(item, (*path, index)) for index, item in enumerate(node.value)]
        try:
            return yaml.constructor.SafeConstructor().construct_object(node)
        except (yaml.YAMLError, ValueError) as broken:
            reason = broken.problem if isinstance(broken, yaml.MarkedYAMLError) else _first_line(broken)
            raise ConfigError(f"{self.path}:{line}: not a plain value: {reason}") from broken

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise self.error(path, "a name is expected here, not a list or mapping", line)
            if key_node.tag == MERGE:
                raise self.error(path, "keys cannot be merged with `<<`; use `*name` for a whole value", line)
            if key in found:
                raise self.error((*path, key), "stands twice in this mapping; remove one", line)
            self.lines[(*path, key)] = line
            found[key] = self._build(value_node, (*path, key))
        return found

    def line(self, path: Path_) -> int:
        """The line of the deepest part of `path` that stands in the file."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def error(self, path: Path_, text: str, line: int | None = None) -> ConfigError:
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
        return ConfigError(f"{self.path}:{line or self.line(path)}: {where + ': ' if where else ''}{text}")

    def check(self, model: type[M]) -> M:
        """Hold the data against `model`. Raises ConfigError naming the first mistake and how many more there are."""
        if not isinstance(self.data, dict):
            raise self.error((), "a mapping of settings is expected at the top of the file")
        try:
            return model.model_validate(self.data)
        except ValidationError as broken:
            raise self._mistake(model, broken.errors(include_url=False)) from broken

    def _mistake(self, model: type[BaseModel], found: list[ErrorDetails]) -> ConfigError:
        """The first mistake in full, with what else is missing beside it, and the number of all others."""
        # A misspelt field is often reported as a missing one too; the misspelling is what a person looks for.
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
        path = self._in_file(model, first["loc"])
        paths = [(self._in_file(model, e["loc"]), e) for e in found]
        # The branches of a choice each report the same value.
        here = [e for at, e in paths if at == path]
        texts = list(dict.fromkeys(_sentence(model, e) for e in here))
        text = " or ".join([texts[0], *(t.removeprefix("must be ") for t in texts[1:])])
        beside: list[str] = []
        if first["type"] == "missing":
            beside = [str(at[-1]) for at, e in paths if e["type"] == "missing" and at != path and at[:-1] == path[:-1]]
            text += f"; also: {', '.join(beside)}" if beside else ""
        more = len({at for at, _ in paths}) - 1 - len(beside)
        return self.error(path, text + (f" (and {more} more)" if more else ""))

    def _in_file(self, model: type[BaseModel], loc: Path_) -> Path_:
        """Pydantic's location less the parts that name a branch of a union and not something in the file."""
        path: Path_ = ()
        for part in loc:
            if (*path, part) in self.lines:
                path = (*path, part)
        # A field that is missing stands nowhere in the file and is named all the same.
        return (*path, loc[-1]) if loc[-1:] != path[-1:] and loc[-1] in _fields_at(model, loc[:-1]) else path


def read(path: Path) -> YamlFile:
    """Read and parse `path`. Raises ConfigError where it is missing, unreadable or not YAML."""
    try:
        return YamlFile(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as broken:
        raise ConfigError(f"{path}: cannot be read: {broken}") from broken


def _first_line(broken: Exception) -> str:
    return str(broken).partition("\n")[0]


def _sentence(model: type[BaseModel], error: ErrorDetails) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"unknown field; allowed here: {', '.join(sorted(_fields_at(model, error['loc'][:-1])))}"
    if kind == "missing":
        return "is required"
    values = dict(error.get("ctx", {}))
    if kind == "literal_error":
        # Pydantic lists them as 'a', 'b' or 'c'.
        listed = ", ".join(str(values["expected"]).replace("'", "").rsplit(" or ", 1))
        allowed = ", ".join(filter(None, listed.split(", ")))  # an empty one is a setting that is left out
        values["one_of"] = f"one of {allowed}" if ", " in allowed else allowed
    shape = SHAPES.get(str(values.get("pattern", "")))
    words = SENTENCES.get(kind) or SENTENCES.get(kind.split("_")[0], "")
    if not words or (kind == "string_pattern_mismatch" and shape is None):
        return error["msg"].removeprefix("Value error, ")
    return words.format(**values, shape=shape)


def _fields_at(model: type[BaseModel], loc: Path_) -> list[str]:
    """The field names allowed at `loc`, found by walking the model's JSON schema."""
    schema = model.model_json_schema()
    here: dict[str, Any] = schema
    for part in loc:
        here = _resolve(schema, here)
        if isinstance(part, int):
            here = here.get("items", {})
        elif part in here.get("properties", {}):
            here = here["properties"][part]
        elif isinstance(here.get("additionalProperties"), dict):
            here = here["additionalProperties"]
    return list(_resolve(schema, here).get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Follow references, and in a choice take the branch that is an object."""
    while True:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        elif "anyOf" in node:
            node = next((n for n in node["anyOf"] if "$ref" in n or n.get("type") in ("object", "array")), {})
        else:
            return node
