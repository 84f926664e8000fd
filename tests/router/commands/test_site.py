"""`providers`, `models`, `config`: headgate.yaml is changed as a person would change it, or not at all."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from router.commands import site
from serving import catalogue
from serving.gpus import Gpu, Readings
from serving.home import Home
from tests import known
from tests.fakes.command_line import Said

Say = Callable[..., Said]


def written(nested: str = "  ", dash: str = "  ") -> str:
    """A file as a person keeps it, with an indent below names and one before dashes."""
    return f"""\
# The gate of the north building.   Ask Jo before changing it.
router:
{nested}max_body_mb: 4        # their proxy takes no more
{nested}queue_wait_s: 5

attach:
{dash}- url: "http://127.0.0.1:8000"   # the old one
{dash}  name: 'old-qwen'

providers:
{nested}# paid by research
{nested}zai: {{enabled: true, key_env: ZAI_API_KEY}}
"""


@pytest.mark.parametrize(("nested", "dash"), [("  ", "  "), ("  ", ""), ("    ", "  "), ("    ", "    ")])
def test_what_is_added_leaves_the_rest_as_it_was(say: Say, home: Home, nested: str, dash: str) -> None:
    ours = written(nested, dash)
    path = home.root / "headgate.yaml"
    path.write_text(ours)
    path.chmod(0o640)
    assert say("providers", "add", "openai", "--key-env", "OUR_KEY").code == 0
    text = path.read_text()
    assert text.startswith(ours), text  # comments, order, quotes and indents
    assert yaml.safe_load(text.removeprefix(ours)) == {"openai": {"enabled": True, "key_env": "OUR_KEY"}}
    assert path.stat().st_mode & 0o777 == 0o640
    assert say("config", "check").out.startswith(f"{path}: correct. ")


def test_every_line_of_the_template_can_be_switched_on(say: Say, home: Home) -> None:
    say("config", "init")
    path = home.root / "headgate.yaml"
    assert yaml.safe_load(path.read_text()) is None
    path.write_text(known.uncommented(path.read_text()))
    found = catalogue.load(path).site
    assert found.run and found.attach and found.engine.python and catalogue.load(path).providers["openai"].enabled
    assert found.model_fields_set == set(catalogue.Site.model_fields) - {"escalate"}
    assert len(found.router.model_fields_set) > 10
    for settings in (found.router, found.keys):
        assert settings == type(settings)(), "what it shows is not the default"


def test_a_first_change_keeps_the_explained_template(say: Say, home: Home) -> None:
    assert say("config", "init").code == 0
    template = (home.root / "headgate.yaml").read_text()
    assert say("models", "add", "qwen3.5-0.8b").code == 0
    text = (home.root / "headgate.yaml").read_text()
    assert text.startswith(template.rstrip())
    assert "Runs: qwen3.5-0.8b;" in say("config", "check").out
    again = say("config", "init")
    assert again.code == 1 and "is there already" in again.err


def test_an_invalid_change_leaves_every_byte(say: Say, home: Home) -> None:
    path = home.root / "headgate.yaml"
    path.write_text(written())
    said = say("providers", "add", "litellm")
    assert said.code == 1 and "was left as it is" in said.err and "base_url" in said.err and said.err.count("\n") == 1
    assert path.read_text() == written()
    assert [p.name for p in home.root.glob("*.yaml")] == ["headgate.yaml"]
    assert not list(home.root.glob(".headgate.*"))


def test_a_link_to_the_file_stays_a_link(say: Say, home: Home, tmp_path: Path) -> None:
    real = tmp_path / "in-git.yaml"
    real.write_text(written())
    (home.root / "headgate.yaml").symlink_to(real)
    assert say("providers", "add", "openai").code == 0
    assert (home.root / "headgate.yaml").is_symlink() and "openai" in real.read_text()


def test_how_many_keys_may_use_a_provider_follows_the_keys(say: Say) -> None:
    key = say("keys", "create", "--team", "search", "--json").json()["id"]
    said = say("providers", "add", "openai")
    assert "No key may use it. To let one: headgate keys set KEY --data-class public" in said.out
    assert "No key for the provider openai: the variable OPENAI_API_KEY is empty or not set" in said.out
    assert say("keys", "set", key, "--data-class", "public").code == 0
    assert "1 key may use it." in say("providers", "add", "openai").out
    rows = {row["name"]: row for row in say("providers", "list", "--json").json()}
    assert rows["openai"]["keys"] == 1 and rows["openai"]["enabled"] and not rows["anthropic"]["enabled"]
    say("keys", "set", key, "--lanes", "private")
    rows = {row["name"]: row for row in say("providers", "list", "--json").json()}
    assert rows["openai"]["keys"] == 0  # nothing hosted is ever in that lane


def test_a_new_provider_needs_its_address_and_says_that_it_has_no_models(say: Say, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("far")
    said = say("providers", "add", "ours", "--base-url", "https://llm.example/v1", "--key-file", str(key))
    assert said.code == 0 and "It has no models yet" in said.out and f"read from {key}" in said.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--base-url", "notaurl"), "base_url must be https://"),
        (("--base-url", "http://llm.example/v1"), "http:// goes into private_ranges only"),
        (("--base-url", "https://llm.example/v1", "--key-file", "/no/key"), "key_file: /no/key does not exist"),
    ],
)
def test_a_provider_that_could_never_be_asked_is_not_written(
    say: Say, home: Home, options: tuple[str, ...], says: str
) -> None:
    path = home.root / "headgate.yaml"
    path.write_text(written())
    said = say("providers", "add", "ours", *options)
    assert said.code == 1 and "was left as it is: headgate.yaml:" in said.err and says in said.err
    assert path.read_text() == written() and not list(home.root.glob(".headgate.*"))


def test_trouble_elsewhere_in_the_file_is_no_reason_not_to_add_a_provider(say: Say, home: Home) -> None:
    (home.root / "headgate.yaml").write_text("engine: {python: /no/python}\n")
    assert say("providers", "add", "openai").code == 0


def test_an_added_model_keeps_what_an_upgrade_must_not_change(say: Say, home: Home) -> None:
    path = home.root / "headgate.yaml"
    path.write_text("models:\n  qwen3.5-0.8b:\n    lanes: [cheap]   # not for private data\n")
    assert say("models", "add", "qwen3.5-0.8b").code == 0
    made = yaml.safe_load(path.read_text())
    shipped = catalogue.load(None).models["qwen3.5-0.8b"]
    entry = made["models"]["qwen3.5-0.8b"]
    assert made["run"] == ["qwen3.5-0.8b"]
    assert entry["lanes"] == ["cheap"] and "# not for private data" in path.read_text()
    assert entry["repo"] == shipped.repo and entry.get("revision", "") == shipped.revision
    for field in ("clearance", "price"):
        assert (field in entry) == (getattr(shipped, field) is not None)
    assert say("models", "add", "qwen3.5-0.8b").code == 0
    assert yaml.safe_load(path.read_text()) == made


def test_price_and_clearance_are_copied_too(say: Say, home: Home) -> None:
    path = home.root / "headgate.yaml"
    path.write_text(
        "models:\n  ours:\n    {place: local, lanes: [cheap], context: 10, output: 5, repo: a/b, revision: abc,\n"
        "     clearance: secret, price: {input: 0.5, output: 1, as_of: 2026-01-01}}\n"
    )
    assert say("models", "add", "ours").code == 0
    entry = yaml.safe_load(path.read_text())["models"]["ours"]
    assert entry["clearance"] == "secret" and entry["price"]["input"] == 0.5 and entry["revision"] == "abc"


def test_diff_shows_what_an_upgrade_would_change(say: Say, home: Home) -> None:
    say("models", "add", "qwen3.5-0.8b")
    assert "Nothing in headgate.yaml differs" in say("models", "diff").out
    path = home.root / "headgate.yaml"
    path.write_text("models: {qwen3.5-0.8b: {lanes: [cheap], clearance: secret}}\n")
    found = {d["field"]: (d["here"], d["shipped"]) for d in say("models", "diff", "--json").json()["differences"]}
    assert found["lanes"][0] == '["cheap"]' and found["clearance"] == ('"secret"', "not set")
    assert set(found) == {"lanes", "clearance"}


def test_without_a_file_nothing_is_said_of_differences_in_it(say: Say) -> None:
    said = say("models", "diff")
    assert said.code == 0 and "starts here" in said.out and "differs" not in said.out


def test_the_smallest_hardware_is_that_of_a_machine_like_this_one(
    say: Say, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = "[{name: big, gpus: 8, memory_gb: 600}, {name: slow, device: cpu, memory_gb: 700}]"
    (home.root / "headgate.yaml").write_text(
        f"models: {{ours: {{place: local, lanes: [cheap], context: 10, output: 5, repo: a/b, variants: {variants}}}}}\n"
    )
    monkeypatch.setattr(site, "read_gpus", lambda: Readings((), "none"))
    assert "700 GB on the CPU (slow)" in say("models", "diff").out
    added = say("models", "add", "ours")
    assert added.code == 0 and added.out.count("does not fit this machine now: ") == 1
    assert added.out.count("it needs a GPU; there is none here") == 1
    gpu = Gpu("GPU-0", "any", 0, 80, 80)
    monkeypatch.setattr(site, "read_gpus", lambda: Readings((gpu,)))
    assert "600 GB on 8 GPUs (big)" in say("models", "diff").out


def far(settings: str) -> str:
    return f"providers:\n  far:\n    enabled: true\n    {settings}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("attach: [{url: http://far.example:8000}]", "1: attach[0]: http:// to far.example would send"),
        ("attach: [{url: http://127.0.0.1:1, ca_file: /no/ca}]", "1: attach[0].ca_file: /no/ca does not exist"),
        ("run: []\nattach:\n  - url: http://127.0.0.1:1\n    key_file: /no/key", "4: attach[0].key_file: /no/key does"),
        ("providers: {openai: {enabled: true, key_file: /no/key}}", "1: providers.openai.key_file: /no/key does not"),
        ("engine: {python: /no/python}", "1: engine.python: /no/python does not exist"),
        ("run: []\nprivacy:\n  effects:\n    emial: public", "4: privacy.effects.emial: 'emial' is no kind; kinds are"),
        (far("base_url: notaurl"), "2: providers.far: base_url must be https://"),
        (far("base_url: ftp://a.example/v1"), "2: providers.far: base_url must be https://"),
        (far("base_url: https://user:pw@a.example/v1"), "2: providers.far: base_url must hold no user"),
        (far("base_url: http://a.example/v1"), "2: providers.far: http:// goes into private_ranges only"),
        (far("base_url: http://8.8.8.8/v1"), "2: providers.far: base_url: http:// is allowed only into private_ranges"),
        (far("base_url: https://10.0.0.1/v1"), "2: providers.far: base_url: 10.0.0.1 is not a global address"),
        (far("{base_url: 'https://a.example/v1', private_ranges: [10.0.0.1/8]}"), "private_ranges: 10.0.0.1/8"),
        (far("base_url: https://a.example/v1\n    proxy: foo"), "2: providers.far: proxy must be http://HOST:PORT"),
    ],
)
def test_check_does_not_call_correct_what_a_start_refuses_or_what_can_never_work(
    say: Say, home: Home, text: str, says: str
) -> None:
    path = home.root / "headgate.yaml"
    path.write_text(f"{text}\n".replace("    enabled: true\n    {", "    {enabled: true, "))
    said = say("config", "check")
    assert said.code == 1 and "correct" not in said.out
    assert f"{path}:" in said.err and says in said.err


@pytest.mark.parametrize(
    "text",
    [
        far("base_url: https://a.example/v1\n    proxy: http://proxy.example:3128"),
        far("base_url: http://llm.internal/v1\n    private_ranges: [10.0.0.0/8]"),
        far("base_url: http://10.1.2.3:8000/v1\n    private_ranges: [10.0.0.0/8]"),
        "providers: {far: {base_url: notaurl}}",  # not enabled
        "privacy: {effects: {email: public, national_id: private}}",
        "inside: [198.18.0.0/15]\nattach: [{url: 'http://198.18.0.1:8000', allow_cleartext: true}]",
    ],
)
def test_check_calls_correct_what_works(say: Say, home: Home, text: str) -> None:
    (home.root / "headgate.yaml").write_text(f"{text}\n")
    said = say("config", "check")
    assert said.code == 0 and ": correct. " in said.out, said.err


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"pattern": r"CASE-[0-9]{6}", "example": "CASE-1"}, "a planted own:cases was not found"),
        ({"pattern": "(?=a)b"}, "own:cases: the patterns do not compile"),
        ({"pattern": r"CASE-[0-9]{6}", "example": "CASE-000000"}, ""),
    ],
)
def test_check_tries_own_patterns_on_their_examples(say: Say, home: Home, own: dict[str, str], says: str) -> None:
    path = home.root / "headgate.yaml"
    path.write_text(yaml.safe_dump({"privacy": {"own": [{"name": "cases", **own}]}}))
    said = say("config", "check")
    assert said.code == (1 if says else 0) and says in said.err
    assert ("privacy.own: " in said.err) == bool(says)


def test_a_plan_says_what_is_fetched_first(
    say: Say, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (home.root / "headgate.yaml").write_text(
        "models: {ours: {place: local, lanes: [cheap], context: 10, output: 5, repo: a/b, size_gb: 1.7}}\n"
    )
    assert "1.7 GB to fetch first (needs a model hub)" in say("plan", "--model", "ours").out
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    assert "to fetch first" not in say("plan", "--model", "ours").out


def test_no_secret_is_printed(say: Say, home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    planted, filed = secrets.token_hex(16), secrets.token_hex(16)
    monkeypatch.setenv("FAR_KEY", planted)
    (tmp_path / "key").write_text(filed)
    say("providers", "add", "openai", "--key-env", "FAR_KEY")
    say("providers", "add", "zai", "--key-file", str(tmp_path / "key"))
    text = say("keys", "create", "--team", "a", "--data-class", "public", "--json").json()["key"]
    commands = [["keys", "list"], ["keys", "list", "--json"], ["providers", "list"], ["providers", "list", "--json"]]
    commands += [["doctor"], ["doctor", "--json"], ["plan"], ["config", "check"], ["models", "diff"]]
    # Somebody pastes the key where its id belongs.
    commands += [["keys", "set", text, "--budget", "5"], ["keys", "rotate", text], ["keys", "revoke", text]]
    commands += [["keys", "set", text[:-1], "--budget", "5"]]
    for command in commands:
        printed = say(*command).all
        for secret in (planted, filed, text.split("_")[2][:-6], home.secret("pepper")):
            assert secret not in printed, command
