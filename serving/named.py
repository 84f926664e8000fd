"""What headgate.yaml names must be there, and its rules must be able to match. Pure; each mistake has its line."""

from __future__ import annotations

import re
from collections.abc import Mapping

from serving import isolation
from serving.models import Model, Provider
from serving.site import EscalationRule, Site, When
from serving.yamlfile import Path_, YamlFile

TARGET_LANES = ("frontier",)
"""The lanes a rule may lead to: into `cheap` or `private` would be the other way."""
DEMO = "demo"
"""The demo model has no entry in models.yaml."""


def check_names(file: YamlFile, site: Site, models: Mapping[str, Model], providers: Mapping[str, Provider]) -> None:
    """Raises ConfigError at the first name that is not known, or rule that cannot match."""
    local = ", ".join(n for n, m in models.items() if m.place == "local")
    for index, name in enumerate(site.run):
        if name == DEMO:
            continue
        if name not in models:
            raise file.error(("run", index), f"no model is called {name!r}; the local models are: {local}")
        if models[name].place == "hosted":
            raise file.error(("run", index), f"{name!r} is hosted and cannot be started; enable its provider instead")
    for name in site.models:
        if models[name].provider and models[name].provider not in providers:
            known = ", ".join(sorted(providers))
            raise file.error(("models", name, "provider"), f"no such provider; the providers are: {known}")
    for name in site.providers:
        if providers[name].enabled and not providers[name].base_url:
            raise file.error(("providers", name), "is enabled and needs its `base_url`")
    for index, attached in enumerate(site.attach):
        if site.isolate and (refused := isolation.refusal([attached.url])):
            raise file.error(("attach", index, "url"), refused)
        if attached.name and attached.name in models and models[attached.name].place == "hosted":
            wrong = f"{attached.name!r} is the name of a hosted model; give the server another one"
            raise file.error(("attach", index, "name"), wrong)
    _check_swap(file, site)
    _check_rules(file, site, models)
    _check_costs(file, site, models, local)
    for route, settings in site.routes.items():
        if settings.check != "none" and route != "chat/completions":
            raise file.error(
                ("routes", route, "check"), "only answers of chat/completions can be held against a schema"
            )


def _check_swap(file: YamlFile, site: Site) -> None:
    run, seen = ", ".join(site.run), set[str]()
    for index, group in enumerate(site.swap.groups):
        at: Path_ = ("swap", "groups", index)
        if len(group) < 2:
            raise file.error(at, "a group shares one place, so it names two models or more")
        for number, name in enumerate(group):
            if name not in site.run:
                raise file.error((*at, number), f"{name!r} is not in `run:`, which names: {run or 'nothing'}")
            if name in seen:
                raise file.error((*at, number), f"{name!r} stands in a group already; a model has one place")
            seen.add(name)
    for name, seconds in site.swap.sleep_after_s.items():
        if name not in site.run:
            raise file.error(
                ("swap", "sleep_after_s", name), f"{name!r} is not in `run:`, which names: {run or 'nothing'}"
            )
        if seconds <= 0:
            raise file.error(("swap", "sleep_after_s", name), "give seconds, more than 0; to never sleep leave it out")


def _check_rules(file: YamlFile, site: Site, models: Mapping[str, Model]) -> None:
    attached = {a.name for a in site.attach}
    seen: list[EscalationRule] = []
    for index, rule in enumerate(site.escalate):
        at: Path_ = ("escalate", index)
        if twin := next((r for r in seen if r.name == rule.name), None):
            raise file.error((*at, "name"), f"two rules are called {twin.name!r}; give each its own name")
        if rule.to not in TARGET_LANES and rule.to not in models and rule.to not in attached:
            known = f"the lane {' or '.join(TARGET_LANES)} nor the name of a model"
            raise file.error((*at, "to"), f"{rule.to!r} is neither {known}; see: headgate models diff")
        if why := _never(rule.when, models):
            raise file.error((*at, "when"), f"the rule {rule.name!r} can never match: {why}")
        if earlier := next((r for r in seen if _covers(r.when, rule.when)), None):
            never = f"the rule {earlier.name!r} before it takes every request that it would match"
            raise file.error(at, f"the rule {rule.name!r} can never match: {never}")
        seen.append(rule)


def _never(when: When, models: Mapping[str, Model]) -> str:
    """Why no request can meet these conditions, or ""."""
    if "words" in when.model_fields_set and not when.words:
        return "its list of words is empty"
    if not when.model_dump(exclude_defaults=True):
        return "it has no condition; give at least one"
    if odd := next((w for w in when.words if not re.search(r"\w", w)), None):
        return f"{odd!r} holds no letter and no digit"
    largest = max((m.context for m in models.values()), default=0)
    if when.tokens_over is not None and when.tokens_over >= largest:
        return f"no model takes more than {largest} tokens"
    if when.route == "embeddings":
        return "embeddings name one model, and a named model is that model"
    if when.route == "completions" and when.tools:
        return "completions have no tools"
    return ""


def _covers(earlier: When, later: When) -> bool:
    """Whether every request that meets `later` meets `earlier`, so that the later rule is never reached."""
    same = ("tools", "needs_schema", "route", "key", "team")
    if any(getattr(earlier, n) is not None and getattr(earlier, n) != getattr(later, n) for n in same):
        return False
    if earlier.tokens_over is not None and (later.tokens_over is None or later.tokens_over < earlier.tokens_over):
        return False
    words = {w.casefold() for w in earlier.words}
    return not words or (bool(later.words) and {w.casefold() for w in later.words} <= words)


def _check_costs(file: YamlFile, site: Site, models: Mapping[str, Model], local: str) -> None:
    costs, frontier = site.costs, site.costs.frontier
    if frontier and (frontier not in models or models[frontier].place != "hosted"):
        raise file.error(("costs", "frontier"), f"{frontier!r} is no hosted model of the catalogue")
    # A server attached without a name is called what it calls itself, which is not known here.
    unnamed = any(a.name is None for a in site.attach)
    known = {n for n, m in models.items() if m.place == "local"} | {a.name for a in site.attach} | {DEMO}
    for name in costs.throughput:
        if name in models and models[name].place == "hosted":
            raise file.error(("costs", "throughput", name), "is hosted; what it costs is its `price`")
        if name not in known and not unnamed:
            raise file.error(("costs", "throughput", name), f"no such local model; there are: {local}")
