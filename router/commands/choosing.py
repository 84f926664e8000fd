"""What `up` starts and `plan` plans: the models named, else the configured ones, else what fits, else the demo."""

from __future__ import annotations

import asyncio

from pydantic import ValidationError
from rich.console import Console

from router.commands.context import Context, Stop, yes_no
from serving import isolation, placement, probe
from serving.attached import refusal
from serving.catalogue import Attached, ConfigError, Model, Site
from serving.gpus import main_memory_free_gb
from serving.gpus import read as read_gpus

DEMO = "demo"


def choose(context: Context, names: list[str], attach: list[str], yes: bool, out: Console) -> list[str]:
    """The names of what starts. May ask the person. Raises ConfigError for a name that cannot be started."""
    if names:
        return [name if name == DEMO else local(context, name).name for name in names]
    if attach:
        return []  # an attached server is all that was asked for; no engine is made
    site = context.found.site
    if site.run or site.attach:
        return list(site.run)
    fitting = suggestion(context)
    if fitting is not None:
        size = f"{fitting.size_gb:g} GB to fetch once" if fitting.size_gb else "size unknown"
        question = f"No model is configured. Start {fitting.name} ({fitting.repo}, {size})?"
        if yes_no(question, yes, out):
            return [fitting.name]
    return [DEMO]


def suggestion(context: Context) -> Model | None:
    """The best model for this machine where a model hub can be reached."""
    if not asyncio.run(probe.hub_reachable()):
        return None
    return placement.suggest(context.found.models.values(), read_gpus(), main_memory_free_gb())


def local(context: Context, name: str) -> Model:
    """The model called `name`, if it can run here. Raises ConfigError."""
    model = context.found.find(name)
    if model.place == "hosted":
        raise ConfigError(
            f"{model.name} is hosted and cannot be started; enable it: headgate providers add {model.provider}"
        )
    return model


def check_attached(urls: list[str], site: Site) -> frozenset[str]:
    """The addresses of --attach as serving publishes them. Raises Stop for one that may not be used."""
    for url in urls:
        try:
            refused = refusal(Attached(url=url), inside=site.inside)
            refused = refused or (isolation.refusal([url]) if site.isolate else "")
        except ValidationError:
            refused = "give http://host:port, https://host:port or unix:/path"
        if refused:
            raise Stop(f"--attach {url}: {refused}")
    return frozenset(probe.address(url) for url in urls)
