"""The shipped catalogue: what it must hold, that nothing leaves before a person says so, and that vLLM takes its flags.

Where the schema files lag behind the records, HEADGATE_WRITE_SCHEMA=1 writes them anew.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from router.ledger.listed import find
from router.ledger.prices import Prices
from serving import command
from serving.catalogue import ABILITIES, Catalogue, DataClass, Model, Shipped, Site, Variant, Vetted, load
from serving.parameters import BOOKKEEPING, OPENAI_CHAT, OUTPUT_LIMITS, REFUSED
from serving.placement import Placed

ROOT = Path(__file__).parents[2]
PROVIDERS = {
    "openai", "azure", "anthropic", "google", "bedrock", "deepseek", "moonshot", "zai", "dashscope", "mistral",
    "openrouter", "litellm",
}  # fmt: skip
OWN_ADDRESS = {"azure", "bedrock", "litellm"}
"""Providers whose address is the site's own."""

CATALOGUE = load()
NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC).timestamp()
PRICED = Prices.of(CATALOGUE, NOW, all_hosted=True).catalogue
LOCAL = [m for m in CATALOGUE.models.values() if m.place == "local"]
HOSTED = [m for m in CATALOGUE.models.values() if m.place == "hosted"]
EACH_LOCAL = pytest.mark.parametrize("model", LOCAL, ids=lambda m: m.name)
EACH_HOSTED = pytest.mark.parametrize("model", HOSTED, ids=lambda m: m.name)


def test_no_provider_is_on_as_shipped() -> None:
    assert set(CATALOGUE.providers) == PROVIDERS
    assert not [name for name, provider in CATALOGUE.providers.items() if provider.enabled]
    assert CATALOGUE.hosted() == []


@pytest.mark.parametrize("name", sorted(PROVIDERS))
def test_a_provider_says_where_it_is_and_where_its_key_comes_from(name: str) -> None:
    provider = CATALOGUE.providers[name]
    assert provider.key_env and provider.title and provider.docs.startswith("https://")
    if name in OWN_ADDRESS:
        assert provider.base_url == ""
    else:
        assert provider.base_url.startswith("https://") and not provider.base_url.endswith("/")
    assert provider.private_ranges == () and provider.proxy == "" and provider.key_file == ""


def test_the_families_reach_from_one_card_to_a_node() -> None:
    count = {family: sum(m.family == family for m in LOCAL) for family in ("qwen", "deepseek", "glm", "kimi")}
    assert count["qwen"] >= 3 and count["deepseek"] >= 2 and count["glm"] >= 2 and count["kimi"] >= 2
    variants = [v for m in LOCAL for v in m.variants]
    assert any(v.device == "cpu" for v in variants)
    assert any(v.device == "gpu" and v.gpus == 1 and v.memory_gb <= 22 for v in variants), "nothing for a 24 GB card"
    assert any(v.gpus == 8 for v in variants), "nothing for a node of 8 GPUs"


@EACH_LOCAL
def test_a_local_model_says_what_it_is_and_what_it_needs(model: Model) -> None:
    assert model.title and model.licence and model.name == model.name.lower()
    assert model.repo.count("/") == 1
    assert model.lanes == ("private", "cheap")
    assert model.price is None, "a local rate is the site's own"
    assert model.parameters == "vllm"
    assert model.output < model.context
    assert model.variants
    names = [v.name for v in model.variants]
    assert len(set(names)) == len(names)
    for variant in model.variants:
        assert variant.memory_gb / variant.gpus < 250, "no GPU holds that"
        assert variant.context <= model.context
        assert model.output < (variant.context or model.context)
        assert not variant.repo or variant.repo.count("/") == 1


@EACH_LOCAL
def test_a_local_model_can_call_tools_and_reason_where_it_says_so(model: Model) -> None:
    assert ("tools" in model.abilities) == ("tool-call-parser" in model.args)
    assert ("tools" in model.abilities) == (model.args.get("enable-auto-tool-choice") is True)
    assert ("reasoning" in model.abilities) == ("reasoning-parser" in model.args)
    assert not (model.args.get("language-model-only") and "vision" in model.abilities)


@EACH_LOCAL
def test_code_that_comes_with_weights_is_not_vetted_as_shipped(model: Model) -> None:
    assert model.vetted is None, "a person of the site reads the code, not we"
    assert not [k for args in (model.args, *(v.args for v in model.variants)) for k in args if "remote" in k]


@EACH_HOSTED
def test_a_hosted_model_receives_public_data_only_and_names_what_it_honours(model: Model) -> None:
    assert model.provider in CATALOGUE.providers
    assert model.cleared_for(dt.date(2026, 11, 21)) is DataClass.public
    assert "private" not in model.lanes
    assert model.output < model.context
    assert isinstance(model.parameters, frozenset)
    assert not model.parameters & (REFUSED.keys() | OUTPUT_LIMITS)
    # They would hand a user's name, or the request itself, to the provider for keeping.
    assert not model.parameters & BOOKKEEPING
    assert model.parameters <= OPENAI_CHAT
    assert ("tools" in model.abilities) == ("tools" in model.parameters)
    assert not ("schema" in model.abilities and "response_format" not in model.parameters)
    assert not ("logprobs" in model.abilities and "logprobs" not in model.parameters)


@EACH_HOSTED
def test_a_price_stands_here_only_where_the_list_has_none(model: Model) -> None:
    listed = find(model, CATALOGUE.providers[model.provider])
    if model.price is not None:
        assert listed is None, "one fact in one place: delete the price here"
        assert model.price.as_of is not None
    elif listed is None:
        assert model.provider in OWN_ADDRESS, "neither here nor in the list: give it a price"


@EACH_HOSTED
def test_a_cached_token_is_not_dearer_and_output_not_cheaper(model: Model) -> None:
    price = PRICED.models[model.name].price
    if price is not None:
        assert 0 < price.input < price.output
        assert price.cached is not None and price.cached < price.input


@EACH_HOSTED
def test_no_context_reaches_into_a_dearer_price(model: Model) -> None:
    """What is held is the most that can be charged: a tier within the context would make every hold that dear."""
    listed = find(model, CATALOGUE.providers[model.provider])
    if listed is not None:
        assert listed.most(model.context, NOW) == listed.most(1, NOW)


def test_each_provider_has_a_model_and_the_large_ones_two() -> None:
    count = {name: sum(m.provider == name for m in HOSTED) for name in PROVIDERS}
    assert min(count.values()) >= 1
    assert min(count[name] for name in ("openai", "anthropic", "google")) >= 2
    assert {lane for m in HOSTED for lane in m.lanes} == {"cheap", "frontier"}


def test_the_same_weights_elsewhere_name_an_entry_of_the_same_family() -> None:
    shared = [m for m in HOSTED if m.same_as]
    assert {"deepseek", "zai", "moonshot", "openrouter"} <= {m.provider for m in shared}
    for model in shared:
        assert model.same_as in CATALOGUE.models
        assert CATALOGUE.models[model.same_as].family == model.family


@pytest.mark.parametrize(("kind", "name"), [(Shipped, "models"), (Site, "headgate")])
def test_schema_is_current(kind: type[BaseModel], name: str) -> None:
    path = ROOT / "deploy" / f"{name}.schema.json"
    wanted = json.dumps(schema(kind), indent=2) + "\n"
    if os.environ.get("HEADGATE_WRITE_SCHEMA") == "1":
        path.write_text(wanted)
    assert path.read_text() == wanted, "run this test once with HEADGATE_WRITE_SCHEMA=1"


def test_editors_find_the_schema() -> None:
    first = (ROOT / "models.yaml").read_text().partition("\n")[0]
    marker, _, path = first.partition("$schema=")
    assert marker == "# yaml-language-server: " and (ROOT / path).is_file()


def schema(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a file that people edit, in an order that is the same in every process."""
    found = kind.model_json_schema()
    if kind is Site:
        # The fields that a site may lay over an entry are those of the entry, each of them optional.
        shipped = Shipped.model_json_schema()["$defs"]
        found["$defs"] = {**shipped, **found["$defs"]}
        for field, record in (("models", "Model"), ("providers", "Provider")):
            laid_over = {k: v for k, v in shipped[record].items() if k != "required"}
            found["$defs"][f"{record}Fields"] = laid_over
            found["properties"][field]["additionalProperties"] = {"$ref": f"#/$defs/{record}Fields"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def test_the_abilities_of_the_records_are_all_in_use_or_known() -> None:
    assert {a for m in CATALOGUE.models.values() for a in m.abilities} <= set(ABILITIES)


# --- vLLM's own opinion -----------------------------------------------------------------------------------------------

CHECK = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser

problems = {}
for name, args in json.load(sys.stdin).items():
    parser = make_arg_parser(FlexibleArgumentParser())
    parser.error = lambda text: (_ for _ in ()).throw(ValueError(text))
    try:
        parsed = parser.parse_args(args)
        validate_parsed_serve_args(parsed)
        if parsed.tool_call_parser is not None:
            ToolParserManager.get_tool_parser(parsed.tool_call_parser)
        if parsed.reasoning_parser:
            ReasoningParserManager.get_reasoning_parser(parsed.reasoning_parser)
    except (Exception, SystemExit) as broken:
        problems[name] = f"{type(broken).__name__}: {broken}"
print(json.dumps(problems))
"""


@pytest.mark.engine
def test_vllm_takes_every_command_line_and_knows_every_parser(tmp_path: Path, engine_python: Path) -> None:
    """One process for all entries. The argument parser takes any parser name, so the registries are asked too."""
    lines = {
        f"{model.name} {variant.name}": built(model, variant, tmp_path) for model in LOCAL for variant in model.variants
    }
    sound = lines["qwen3.5-4b bf16"]
    wrong = {
        "wrong tool parser": swapped(sound, "--tool-call-parser", "no_such_parser"),
        "wrong reasoning parser": swapped(sound, "--reasoning-parser", "no_such_parser"),
        "wrong flag": [*sound, "--no-such-flag"],
        "wrong choice": [*sound, "--kv-cache-dtype", "fp3"],
    }
    problems = asked(engine_python, {**lines, **wrong})
    assert {name: problem for name, problem in problems.items() if name not in wrong} == {}
    assert set(problems) == set(wrong), "the check lets a wrong name pass"


def built(model: Model, variant: Variant, folder: Path) -> list[str]:
    """What Headgate would start, less the Python and the module's name."""
    vetted = model.model_copy(update={"vetted": Vetted(by="test", date=dt.date(2026, 11, 21))})
    on_gpu = variant.device == "gpu"
    placed = Placed(
        model=vetted,
        variant=variant,
        device=variant.device,
        gpus=tuple(f"GPU-{n}" for n in range(variant.gpus)) if on_gpu else (),
        context=variant.context or model.context,
        limit=64,
    )
    line = command.build(
        placed,
        python=Path("python"),
        weights=variant.repo or model.repo,
        revision="0" * 40,
        socket=folder / "engine.sock",
        port=None,
        installation="test",
        instance=model.name,
        inherited={},
    ).args
    assert ("--trust-remote-code" in line) == model.remote_code
    start = line.index("vllm.entrypoints.openai.api_server") + 1
    return list(line[start:])


def swapped(line: list[str], flag: str, value: str) -> list[str]:
    at = line.index(flag) + 1
    return [*line[:at], value, *line[at + 1 :]]


def asked(python: Path, lines: dict[str, list[str]]) -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        [python, "-c", CHECK], input=json.dumps(lines), capture_output=True, text=True, timeout=280, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_site_can_lay_its_fields_over_any_entry(tmp_path: Path) -> None:
    site = tmp_path / "headgate.yaml"
    names = {name: {"title": "ours"} for name in CATALOGUE.models}
    site.write_text(json.dumps({"models": names}))
    found: Catalogue = load(site)
    assert {m.title for m in found.models.values()} == {"ours"}
    changed = [n for n, m in found.models.items() if m.model_copy(update={"title": ""}) != titleless(n)]
    assert changed == []


def titleless(name: str) -> Model:
    return CATALOGUE.models[name].model_copy(update={"title": ""})
