"""`providers`, `models`, `config`: what the site's headgate.yaml says. Comments and order of the file are kept."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.util import load_yaml_guess_indent

from router.commands import checks, unusable
from router.commands.clearance import clearance
from router.commands.context import ConfigOption, Context, JsonOption, Stop, console, open_context, say_json, table
from serving import catalogue, placement, yamlfile
from serving.catalogue import Catalogue, ConfigError, Model, Shipped
from serving.gpus import main_memory_free_gb
from serving.gpus import read as read_gpus
from serving.home import find_home

providers = typer.Typer(no_args_is_help=True, help="Hosted providers: off until enabled here.")
models = typer.Typer(no_args_is_help=True, help="The models that start here, and what hosted ones may receive.")
models.command("clearance")(clearance)
config_app = typer.Typer(no_args_is_help=True, help="The one configuration file, headgate.yaml.")

NESTED = re.compile(r"^\w+: *(?:#.*)?\n(?: *#.*\n)*( +)(?!-)\S", re.MULTILINE)
"""A mapping below a name: how far a person indents."""
COPIED = ("lanes", "clearance", "price", "repo", "revision")
"""Fields written into headgate.yaml when a model is added, so that an upgrade never changes them silently."""

TEMPLATE = """\
# Headgate's configuration. Every line is optional; what is not said here comes from the shipped models.yaml.
# Check it with: headgate config check

# Which models start (see: headgate models diff, headgate plan).
# run: [qwen3.5-0.8b, qwen3.5-4b]

# Which of them share one place and take turns in it, by demand.
# swap: {groups: [[qwen3.5-0.8b, qwen3.5-4b]], min_stay_s: 300}

# vLLM servers that run already; never started, stopped or signalled.
# attach:
#   - url: http://127.0.0.1:8000
#     name: our-qwen              # optional: the name callers use
#     key_env: OUR_QWEN_KEY       # optional

# Which vLLM runs the models; by default the version this release was tested with, made on first use.
# engine: {python: /opt/vllm/bin/python}

# Hosted providers: nothing leaves until one is enabled AND a key's data class is within a model's clearance.
# providers:
#   openai: {enabled: true, key_env: OPENAI_API_KEY}

# Fields laid over the shipped models, or new models.
# models:
#   claude-haiku-5-5:
#     clearance: internal         # default: public
#     approved: {by: Jo Doe, contract: DPA-17, regions: [eu], until: 2027-06-30}
#     retention_days: 0           # what its provider promises; what is not said is unknown, so not promised
#     trains_on_data: false

# The least class of a team's or a route's requests, and what hosted models must promise for them.
# teams:
#   legal: {data_class: internal, requires: [region:eu, no-training]}
# routes:
#   embeddings: {data_class: private}

# What is looked for in a request that could leave. README.md lists the kinds and their classes.
# privacy:
#   effects: {email: public}
#   own_domains: [example.com]    # addresses at these domains are no finding
#   history_days: 30              # so long a text that was private stays private

# Linux: with true, router and engines run without a route out of this machine.
# isolate: false
# Where attached servers may lie; loopback always counts.
# inside: [10.0.0.0/8]

# What new keys are unless the command says otherwise.
# keys:
#   data_class: private
#   lanes: [private, cheap, frontier]
#   budget_usd: null              # US dollars a calendar month
#   requests_per_minute: null
#   tokens_per_minute: null

# What local answers cost; without it they are recorded as unpriced.
# costs: {gpu_hour_usd: 1.2, utilisation: 0.5}

# The router itself, with its defaults. README.md has the other settings.
# router:
#   workers: 1                    # processes that answer callers; more than one only where one uses a whole core
#   queue_length: 100             # requests that may wait for room on local models
#   queue_wait_s: 10              # for so long at most; then 503 with Retry-After
#   queue_wait_batch_s: 600       # for so long those that may come later
#   max_requests: 1024            # open at once, for each worker
#   max_connections: 4096         # for each worker
#   max_body_mb: 16               # the largest request
#   schemas_per_minute: 60        # new schemas for answers that one key may bring; the engine compiles each
#   memory_limit_mb: 0            # for each worker; 0 is its share of the container or machine
#   total_timeout_s: 600          # the longest answer
#   first_byte_timeout_s: 300     # of an answer that is not streamed, that is its model's time to think
#   first_token_timeout_s: 60     # of a stream, where another endpoint may answer
#   idle_timeout_s: 30            # the longest pause inside an answer
#   admin_port: 0                 # metrics on this port of loopback, with the token in secrets/admin-token; 0 does not
"""


@providers.command("add")
def add_provider(
    name: Annotated[str, typer.Argument(help="Its name in the catalogue, or a new one with --base-url.")],
    base_url: Annotated[str, typer.Option(help="Address up to and including the version.")] = "",
    key_env: Annotated[str, typer.Option(help="Environment variable with its key.")] = "",
    key_file: Annotated[str, typer.Option(help="File with its key.")] = "",
    config: ConfigOption = None,
) -> None:
    """Enable a provider. Private keys still cannot use it: see the line this prints.

    Example: headgate providers add openai --key-env OPENAI_API_KEY
    """
    context = open_context(config)
    known = context.found.providers.get(name)
    if known is None and not base_url:
        there = ", ".join(sorted(context.found.providers))
        raise Stop(f"no provider is called {name!r}; there are {there}; a new one needs --base-url")
    given = {"base_url": base_url, "key_env": key_env, "key_file": key_file}
    fields = {"enabled": True} | {k: v for k, v in given.items() if v}

    def change(site: dict[str, Any]) -> None:
        _at(site, "providers", name).update(fields)

    changed = _edit(context, change, lambda found: unusable.sentences(found, ("providers", name)))
    out, provider = console(), changed.found.providers[name]
    where = provider.key_file or provider.key_env or "nowhere: it is asked without a key"
    out.print(f"{name} is enabled in {changed.site_path}; its key is read from {where}.", soft_wrap=True)
    if trouble := checks.key_trouble(name, provider):
        out.print(f"{trouble[0].upper()}{trouble[1:]}.", soft_wrap=True)
    served = [m.name for m in changed.found.models.values() if m.provider == name]
    if not served:
        out.print(f"It has no models yet: add some under models: in {changed.site_path}", soft_wrap=True)
    may = checks.keys_may(len(checks.may_use(changed, name)))
    out.print(
        f"{may[0].upper()}{may[1:]} use it. To let one: headgate keys set KEY --data-class public", soft_wrap=True
    )
    out.print("It takes effect with: headgate down; headgate up")


@providers.command("list")
def list_providers(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List the providers, and how many keys may use each.

    Example: headgate providers list
    """
    context = open_context(config)
    names = sorted(context.found.providers, key=lambda n: (not context.found.providers[n].enabled, n))
    rows = [_provider_row(context, name) for name in names]
    if as_json:
        say_json(rows)
        return
    shown = table("provider", "enabled", "keys", "its key is read from", "models", whole=4)
    for row in rows:
        there = "" if not row["enabled"] else " (missing)" if row["key_trouble"] else " (there)"
        key = f"{row['key']}{there}" if row["key"] else "nowhere"
        shown.add_row(row["name"], "yes" if row["enabled"] else "no", str(row["keys"]), key, "\n".join(row["models"]))
    console().print(shown)


def _provider_row(context: Context, name: str) -> dict[str, Any]:
    provider = context.found.providers[name]
    return {
        "name": name,
        "enabled": provider.enabled,
        "models": [m.name for m in context.found.models.values() if m.provider == name],
        "keys": len(checks.may_use(context, name)) if provider.enabled else 0,
        "base_url": provider.base_url,
        "key": provider.key_file or provider.key_env,
        "key_trouble": checks.key_trouble(name, provider),
    }


@models.command("add")
def add_model(
    name: Annotated[str, typer.Argument(help="Its name in the catalogue, see: headgate models diff")],
    config: ConfigOption = None,
) -> None:
    """Start a local model from now on: adds it to `run:` and copies what an upgrade must not change.

    Example: headgate models add qwen3.5-0.8b
    """
    context = open_context(config)
    model = context.found.find(name)
    if model.place == "hosted":
        raise Stop(f"{name} is hosted; enable its provider instead: headgate providers add {model.provider}")
    kept = model.model_dump(mode="json", include=set(COPIED), exclude_none=True)
    fields = {field: kept[field] for field in COPIED if kept.get(field)}

    def change(site: dict[str, Any]) -> None:
        run = site.setdefault("run", [])
        if model.name not in run:
            run.append(model.name)
        entry = _at(site, "models", model.name)
        for field, value in fields.items():
            entry.setdefault(field, value)

    changed = _edit(context, change)
    console().print(
        f"{model.name} starts with the next: headgate up   (written to {changed.site_path})", soft_wrap=True
    )
    plan = placement.place([changed.found.models[model.name]], read_gpus(), main_memory_free_gb())
    for misfit in plan.misfits:
        console().print(f"Note: it does not fit this machine now: {misfit.reason}.", soft_wrap=True)


@models.command("diff")
def diff_models(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List the local models, what runs, and where the site's copy differs from the shipped catalogue.

    Example: headgate models diff
    """
    context = open_context(config)
    shipped = {m.name: m for m in yamlfile.read(catalogue.shipped_path()).check(Shipped).models}
    differences = [d for name in context.found.site.models for d in _differences(context, name, shipped.get(name))]
    if as_json:
        say_json({"run": list(context.found.site.run), "differences": differences})
        return
    out, gpus = console(), bool(read_gpus().gpus)
    rows = table("model", "starts here", "to fetch", "smallest hardware")
    for model in context.found.models.values():
        if model.place == "local":
            runs = "yes" if model.name in context.found.site.run else ""
            size = f"{model.size_gb:g} GB" if model.size_gb else ""
            rows.add_row(model.name, runs, size, _smallest(model, gpus))
    out.print(rows)
    for found in differences:
        out.print(
            f"{found['model']}.{found['field']}: here {found['here']}, shipped {found['shipped']}", soft_wrap=True
        )
    if not differences and context.found.path:
        out.print("Nothing in headgate.yaml differs from the shipped catalogue.")


@config_app.command("init")
def init(
    here: Annotated[bool, typer.Option("--here", help="In the working folder instead of the home folder.")] = False,
) -> None:
    """Write a headgate.yaml in which everything is commented out.

    Example: headgate config init
    """
    home = find_home()
    home.make()
    path = (Path.cwd() if here else home.root) / "headgate.yaml"
    try:
        with path.open("x") as file:
            file.write(TEMPLATE)
    except FileExistsError as there:
        raise Stop(f"{path} is there already; it is left as it is") from there
    console().print(f"Written: {path}", soft_wrap=True)


@config_app.command("check")
def check(config: ConfigOption = None) -> None:
    """Check headgate.yaml and say which file is used.

    Example: headgate config check
    """
    context = open_context(config)
    found = context.found
    if wrong := unusable.sentences(found):
        raise Stop("\n".join(wrong))
    enabled = [n for n, p in found.providers.items() if p.enabled]
    console().print(
        f"{found.path or 'no headgate.yaml; the defaults'}: correct. Runs: {', '.join(found.site.run) or 'what fits'}; "
        f"attached: {len(found.site.attach)}; providers enabled: {', '.join(enabled) or 'none'}.", soft_wrap=True,
    )  # fmt: skip


def _edit(
    context: Context, change: Callable[[dict[str, Any]], object], wrong: Callable[[Catalogue], list[str]] = lambda _: []
) -> Context:  # fmt: skip
    """Change headgate.yaml, keeping comments; the new text is checked before it takes the old one's place.

    `wrong`: what could never work of it, though it is well written.
    """
    path = context.site_path.resolve()  # a link stays a link
    text = path.read_text(encoding="utf-8") if path.exists() else TEMPLATE
    editor = YAML()
    editor.preserve_quotes, editor.width = True, 4096
    try:
        # A file with nothing but comments loads as None, so the new lines go below the old text.
        data, indent, offset = load_yaml_guess_indent(text, yaml=editor)
    except YAMLError as broken:
        raise Stop(f"{path} was left as it is, since it cannot be read for a change: {broken}") from broken
    nested = NESTED.search(text)
    editor.indent(mapping=len(nested[1]) if nested else 2, sequence=indent or 2, offset=offset or 0)
    above, data = (text.rstrip("\n") + "\n\n", {}) if data is None else ("", data)
    change(data)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".headgate.", suffix=".yaml")
    draft = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(above)
            editor.dump(data, file)
        found = catalogue.load(draft)
        if told := wrong(found):
            raise ConfigError("; ".join(told))
        draft.chmod(path.stat().st_mode & 0o7777 if path.exists() else 0o600)
        draft.replace(path)
    except ConfigError as refused:
        raise Stop(f"{path} was left as it is: {str(refused).replace(name, path.name)}") from refused
    finally:
        draft.unlink(missing_ok=True)
    return Context(context.home, found.model_copy(update={"path": context.site_path}))


def _at(site: dict[str, Any], section: str, name: str) -> dict[str, Any]:
    """The mapping at section.name, made where it is missing."""
    if site.get(section) is None:
        site[section] = {}
    if site[section].get(name) is None:
        site[section][name] = {}
    found: dict[str, Any] = site[section][name]
    return found


def _differences(context: Context, name: str, shipped: Model | None) -> list[dict[str, str]]:
    if shipped is None:
        return []
    here, there = (model.model_dump(mode="json") for model in (context.found.models[name], shipped))
    return [
        {"model": name, "field": field, "here": _spelt(here[field]), "shipped": _spelt(there[field])}
        for field in Model.model_fields
        if _spelt(here[field]) != _spelt(there[field])
    ]


def _spelt(value: Any) -> str:
    """A field as YAML would have it; sets in one order, since each run has another."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = sorted(value)
    return "not set" if value is None else json.dumps(value, sort_keys=True)


def _smallest(model: Model, gpus: bool) -> str:
    """What the least of its variants needs; without GPUs the least of those for a CPU, where it has one."""
    if not model.variants:
        return ""
    own = [] if gpus else [v for v in model.variants if v.device == "cpu"]
    least = min(own or model.variants, key=lambda v: v.memory_gb)
    on = "the CPU" if least.device == "cpu" else f"{least.gpus} GPU{'s' * (least.gpus > 1)}"
    return f"{least.memory_gb:g} GB on {on} ({least.name})"
