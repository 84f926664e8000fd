"""The site's file over the shipped catalogue: what may leave is what a person wrote, and no more."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serving import catalogue as catalogue_module
from serving.catalogue import Catalogue, DataClass, find_site, load
from serving.yamlfile import ConfigError

TODAY = dt.date(2026, 11, 21)
SHIPPED = """
version: 1
providers:
  far: {base_url: https://far.example/v1, key_env: FAR_KEY}
  away: {}
models:
  - name: small
    place: local
    lanes: [private, cheap]
    context: 8192
    output: 512
    repo: maker/Small
    args: {block-size: 16}
    variants: [{name: bf16, memory_gb: 4}]
  - name: big
    place: hosted
    lanes: [frontier]
    context: 100000
    output: 1000
    parameters: [temperature, top_p, tools, stop, seed, n]
    price: {input: 1, output: 2, as_of: 2026-11-21}
    provider: far
    provider_model: big-1
"""
APPROVED = "approved: {by: Ada, contract: DPA-7, regions: [eu], until: 2026-11-21}"


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(SHIPPED)
    return path


def with_site(shipped: Path, text: str) -> Catalogue:
    site = shipped.parent / "headgate.yaml"
    site.write_text(text)
    return load(site, shipped)


def refusal(shipped: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        with_site(shipped, text)
    message = str(caught.value)
    assert message.startswith(f"{shipped.parent / 'headgate.yaml'}:") and "\n" not in message
    return message.removeprefix(f"{shipped.parent / 'headgate.yaml'}:")


# --- what may leave -------------------------------------------------------------------------------------------------


def test_as_shipped_local_models_take_everything_and_hosted_ones_public_data(shipped: Path) -> None:
    found = load(None, shipped)
    assert found.models["small"].cleared_for(TODAY) is DataClass.secret
    assert found.models["big"].cleared_for(TODAY) is DataClass.public
    assert found.hosted() == []


def test_an_approval_ends_with_its_last_day(shipped: Path) -> None:
    big = with_site(shipped, f"models:\n  big:\n    clearance: private\n    {APPROVED}\n").models["big"]
    assert big.cleared_for(TODAY - dt.timedelta(days=30)) is DataClass.private
    assert big.cleared_for(TODAY) is DataClass.private
    assert big.cleared_for(TODAY + dt.timedelta(days=1)) is DataClass.public


def test_a_clearance_without_an_approval_is_refused(shipped: Path) -> None:
    found = refusal(shipped, "models:\n  big:\n    clearance: internal\n")
    assert "models.big" in found and "needs `approved: {by, contract, regions, until}`" in found


def test_an_approval_alone_raises_nothing(shipped: Path) -> None:
    big = with_site(shipped, f"models:\n  big:\n    {APPROVED}\n").models["big"]
    assert big.cleared_for(TODAY) is DataClass.public


def test_an_approval_names_who_which_contract_and_until_when(shipped: Path) -> None:
    for missing in ("by: Ada, ", "contract: DPA-7, ", ", until: 2026-11-21"):
        text = f"models:\n  big:\n    clearance: private\n    {APPROVED.replace(missing, '')}\n"
        assert "is required" in refusal(shipped, text)


PROMISED = "regions: [eu], retention_days: 0, trains_on_data: false, compliance: [gdpr]"
ALL = ("region:eu", "no-retention", "no-training", "tag:gdpr")


def test_what_nobody_says_is_not_promised(shipped: Path) -> None:
    assert load(None, shipped).models["big"].unmet(ALL, TODAY) == sorted(ALL)


def test_a_model_promises_what_its_provider_does_unless_its_own_entry_says_otherwise(shipped: Path) -> None:
    of_provider = f"providers: {{far: {{{PROMISED}}}}}\n"
    assert with_site(shipped, of_provider).models["big"].unmet(ALL, TODAY) == []
    own = f"{of_provider}models: {{big: {{regions: [us], trains_on_data: true, compliance: [], retention_days: 3}}}}\n"
    assert with_site(shipped, own).models["big"].unmet(ALL, TODAY) == sorted(ALL)
    alone = f"models: {{big: {{{PROMISED}}}}}\n"
    assert with_site(shipped, alone).models["big"].unmet(ALL, TODAY) == []
    assert with_site(shipped, of_provider).models["small"].regions is None


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("providers: {far: {regions: [EU west]}}\n", "regions"),
        ("providers: {far: {retention_days: -1}}\n", "retention_days"),
        ("teams: {search: {requires: [region eu]}}\n", "requires"),
        ("teams: {search: {data_class: confidential}}\n", "data_class"),
        ("routes: {chat/completions: {requires: [no training]}}\n", "requires"),
        ("privacy: {effects: {card: nothing}}\n", "effects"),
    ],
)
def test_a_misspelt_promise_or_requirement_is_refused(shipped: Path, text: str, path: str) -> None:
    assert path in refusal(shipped, text)


def test_secret_data_can_never_be_cleared_to_leave(shipped: Path) -> None:
    found = refusal(shipped, f"models:\n  big:\n    clearance: secret\n    {APPROVED}\n")
    assert "secret data never leaves" in found


@pytest.mark.parametrize("name", ["public", "internal", "private"])
def test_a_local_model_that_may_not_have_everything_is_refused(shipped: Path, name: str) -> None:
    """What stays here is not searched before its answer, so nothing would hold that clearance against its content."""
    found = refusal(shipped, f"models:\n  small:\n    clearance: {name}\n")
    assert "models.small" in found and "take `clearance` out" in found and "private_ranges" in found
    small = with_site(shipped, "models:\n  small:\n    clearance: secret\n").models["small"]
    assert small.cleared_for(TODAY) is DataClass.secret


def test_a_wrong_data_class_is_answered_with_the_four(shipped: Path) -> None:
    found = refusal(shipped, "models:\n  small:\n    clearance: confidential\n")
    assert found.startswith("3: models.small: clearance: ")
    assert "choose one of public, internal, private, secret" in found
    assert "choose one of" in refusal(shipped, "keys:\n  data_class: 2\n")


def test_a_hosted_model_cannot_join_the_private_lane(shipped: Path) -> None:
    found = refusal(shipped, "models:\n  big:\n    lanes: [private, frontier]\n")
    assert "the lane private is for local models only" in found


def test_a_hosted_model_does_not_become_local_by_one_word(shipped: Path) -> None:
    assert "a local model has no `provider`" in refusal(shipped, "models:\n  big: {place: local}\n")


def test_a_provider_is_on_only_where_the_site_says_so(shipped: Path) -> None:
    found = with_site(shipped, "providers:\n  far: {enabled: true}\n")
    assert [m.name for m in found.hosted()] == ["big"]
    assert found.providers["far"].base_url == "https://far.example/v1", "the rest stays as shipped"
    assert not with_site(shipped, "providers:\n  far: {key_env: OTHER}\n").hosted()


def test_a_provider_without_an_address_cannot_be_enabled(shipped: Path) -> None:
    found = refusal(shipped, "providers:\n\n  away: {enabled: true}\n")
    assert found == "3: providers.away: is enabled and needs its `base_url`"


def test_a_key_without_settings_holds_private_data(shipped: Path) -> None:
    assert load(None, shipped).site.keys.data_class is DataClass.private
    assert with_site(shipped, "keys: {data_class: public}\n").site.keys.data_class is DataClass.public


# --- the overlay ----------------------------------------------------------------------------------------------------


def test_the_site_changes_the_fields_it_names_and_no_others(shipped: Path) -> None:
    before = load(None, shipped).models
    after = with_site(shipped, "models:\n  small: {output: 64}\n  big: {price: {input: 3, output: 4}}\n").models
    assert after["small"] == before["small"].model_copy(update={"output": 64})
    assert after["big"].price is not None and after["big"].price.input == 3
    assert after["big"].parameters == before["big"].parameters
    assert list(after) == list(before)


def test_the_site_can_add_an_entry_of_its_own(shipped: Path) -> None:
    text = """
models:
  ours:
    place: local
    lanes: [private]
    context: 4096
    output: 256
    repo: us/Ours
run: [ours, small]
"""
    found = with_site(shipped, text)
    assert found.models["ours"].name == "ours" and found.site.run == ("ours", "small")
    assert found.find("us/Ours").name == "ours", "also by the id of its weights"


def test_a_new_entry_that_is_not_whole_says_what_it_lacks(shipped: Path) -> None:
    assert "models.ours: place: is required" in refusal(shipped, "models:\n  ours: {context: 4096}\n")
    text = "models:\n  ours: {place: hosted, lanes: [cheap], context: 9, output: 1}\n"
    assert "names its `provider` and its `provider_model`" in refusal(shipped, text)


def test_a_new_entry_of_an_unknown_provider_is_answered_with_the_known_ones(shipped: Path) -> None:
    entry = "{place: hosted, lanes: [cheap], context: 9, output: 1,\n    provider: fra, provider_model: x}"
    text = f"models:\n  ours:\n    {entry}\n"
    assert refusal(shipped, text) == "4: models.ours.provider: no such provider; the providers are: away, far"


@pytest.mark.parametrize("name", ["private", "cheap", "frontier", "auto"])
def test_a_model_cannot_take_the_name_of_a_lane(name: str, shipped: Path) -> None:
    text = f"models:\n  {name}: {{place: local, lanes: [private], context: 9, output: 1, repo: a/b}}\n"
    assert "give the model another name" in refusal(shipped, text)


@pytest.mark.parametrize("name", ["../up", "a b", "", "-x", "é", "x" * 200, "a\\nb"])
def test_a_name_is_plain(name: str, shipped: Path) -> None:
    entry = {"place": "local", "lanes": ["private"], "context": 9, "output": 1}
    assert "name" in refusal(shipped, yaml.safe_dump({"models": {name: entry}}))


def test_the_names_to_run_are_checked(shipped: Path) -> None:
    found = refusal(shipped, "run:\n  - small\n  - smal\n")
    assert found == "3: run[1]: no model is called 'smal'; the local models are: small"
    found = refusal(shipped, "run: [big]\n")
    assert found == "1: run[0]: 'big' is hosted and cannot be started; enable its provider instead"


def test_a_model_that_is_not_there_is_answered_with_those_that_are(shipped: Path) -> None:
    with pytest.raises(ConfigError, match="the local models are: small"):
        load(None, shipped).find("nothing")
    with pytest.raises(ConfigError):
        load(None, shipped).find("")


# --- broken files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start", "allowed"),
    [
        (
            "runs: [small]\n",
            "1: runs: unknown field",
            "attach, costs, engine, escalate, inside, isolate, keys, models, privacy, providers, router, routes, run",
        ),
        ("keys:\n  dataclass: public\n", "2: keys.dataclass: unknown field", "budget_usd, data_class, lanes"),
        (
            "models:\n  small:\n    output: 1\n    clearence: private\n",
            "4: models.small: clearence: unknown",
            "clearance",
        ),
        (
            "models:\n  big:\n    price: {inptu: 1}\n",
            "3: models.big: price.inptu: unknown",
            "input, output (and 2 more)",
        ),
        (
            "models:\n  small:\n    variants:\n    - {name: a, memory: 4}\n",
            "4: models.small: variants[0].memory: unknown",
            "memory_gb",
        ),
        ("providers:\n  far:\n    enable: true\n", "3: providers.far: enable: unknown field", "enabled"),
        ("attach:\n  - url: http://h\n    nme: x\n", "3: attach[0].nme: unknown field", "allow_cleartext"),
        ("engine: {pyton: /x}\n", "1: engine.pyton: unknown field", "package, python, version"),
    ],
)
def test_an_unknown_field_is_named_with_its_line_and_the_allowed_ones(
    text: str, start: str, allowed: str, shipped: Path
) -> None:
    found = refusal(shipped, text)
    assert found.startswith(start) and allowed in found


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("run: [small\n", "not valid YAML"),
        ("run: [small]\nrun: [big]\n", "2: run: stands twice"),
        ("models:\n  small: {output: 1}\n  small: {output: 2}\n", "3: models.small: stands twice"),
        ("models:\n  small: {lanes: [fast]}\n", "must be one of private, cheap, frontier"),
        ("models:\n  small: {lanes: []}\n", "must name at least 1"),
        ("models:\n  small: {context: 0}\n", "must be more than 0"),
        ("models:\n  small: {abilities: [smell]}\n", "must be one of chat, "),
        ("models:\n  big: {price: {input: -1, output: 1}}\n", "must be at least 0"),
        ("models:\n  big: {price: {input: .inf, output: 1}}\n", "must be a number"),
        ("models:\n  big: {price: {input: .nan, output: 1}}\n", "must be a number"),
        ("keys: {budget_usd: .inf}\n", "must be a number"),
        ("attach: [{url: ftp://host}]\n", "must begin with http://"),
        ("models: [small]\n", "must be a mapping of settings"),
        ("models:\n  small:\n", "must be a mapping of settings"),
        ("models:\n  small: {args: {<<: {a: 1}}}\n", "cannot be merged"),
        ("models:\n  big: !!python/object:os.system {}\n", "is not allowed"),
    ],
)
def test_a_broken_file_is_refused_with_a_sentence(text: str, part: str, shipped: Path) -> None:
    assert part in refusal(shipped, text)


def test_two_shipped_models_cannot_share_a_name(shipped: Path) -> None:
    shipped.write_text(SHIPPED.replace("name: big", "name: small"))
    with pytest.raises(ConfigError, match="share a name"):
        load(None, shipped)


def test_a_given_file_must_exist_and_the_nearest_is_taken(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    near.mkdir()
    far.mkdir()
    assert find_site(None, [near, far]) is None
    (far / "headgate.yaml").write_text("{}")
    assert find_site(None, [near, far]) == far / "headgate.yaml"
    (near / "headgate.yaml").write_text("{}")
    assert find_site(None, [near, far]) == near / "headgate.yaml"
    with pytest.raises(ConfigError, match="headgate config init"):
        find_site(tmp_path / "nowhere.yaml", [near])


def test_a_folder_or_a_link_that_leads_nowhere_is_not_passed_over(tmp_path: Path) -> None:
    """Whoever made it means that file, and not the defaults."""
    near, far = tmp_path / "near", tmp_path / "far"
    (near / "headgate.yaml").mkdir(parents=True)
    far.mkdir()
    (far / "headgate.yaml").symlink_to(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r"near/headgate\.yaml: is a folder, not a file"):
        find_site(None, [near, far])
    with pytest.raises(ConfigError, match=r"far/headgate\.yaml: no such file"):
        find_site(None, [far, near])
    with pytest.raises(ConfigError, match="near: is a folder, not a file"):
        find_site(near, [])


# --- the policy version -----------------------------------------------------------------------------------------------


def test_every_process_works_out_the_same_policy_version(shipped: Path) -> None:
    """The door refuses a permit made under another version than its own, and each process orders sets its own way."""
    ask = (
        "import sys, pathlib; from serving.catalogue import load; print(load(None, pathlib.Path(sys.argv[1])).version)"
    )
    root = Path(catalogue_module.__file__).parents[1]
    found = {
        subprocess.run(
            [sys.executable, "-c", ask, str(shipped)], env={**os.environ, "PYTHONHASHSEED": str(seed)},
            cwd=root, capture_output=True, text=True, check=True,
        ).stdout
        for seed in range(4)
    }  # fmt: skip
    assert len(found) == 1 and found != {""}


@pytest.mark.parametrize(
    "text",
    [
        "providers: {far: {enabled: true}}\n",
        "providers: {far: {base_url: https://else.example/v1}}\n",
        "keys: {data_class: public}\n",
        f"models:\n  big:\n    clearance: internal\n    {APPROVED}\n",
        "models: {big: {provider_model: big-2}}\n",
        "models: {big: {regions: [eu]}}\n",
        "providers: {far: {trains_on_data: false}}\n",
        "privacy: {effects: {email: public}}\n",
        "privacy: {own_domains: [ours.example]}\n",
        "teams: {search: {data_class: internal}}\n",
        "teams: {search: {requires: [no-training]}}\n",
        "routes: {embeddings: {data_class: internal}}\n",
        "routes: {embeddings: {requires: [region:eu]}}\n",
    ],
)
def test_the_policy_version_changes_with_what_decides_where_data_may_go(text: str, shipped: Path) -> None:
    assert with_site(shipped, text).version != load(None, shipped).version


def test_the_policy_version_ignores_what_only_concerns_this_machine(shipped: Path) -> None:
    here = "run: [small]\nmodels: {small: {output: 9}}\nisolate: true\n"
    assert with_site(shipped, here).version == load(None, shipped).version
    # Of a route, what holds for answers alone.
    checked = "routes: {chat/completions: {check: json_schema, droppable: [seed]}}\n"
    unset = "routes: {chat/completions: {}}\n"
    assert with_site(shipped, checked).version == with_site(shipped, unset).version
