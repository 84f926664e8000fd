"""The catalogue: the shipped models.yaml with the site's headgate.yaml laid over it, as frozen records.

The one module of serving/ that router/ shares (with home.py, which says where files lie). It knows which models there
are, what they can do, what they cost and what they may receive; it does not know what runs.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, PrivateAttr

from serving import yamlfile
from serving.models import PROMISES as PROMISES
from serving.models import Approval as Approval
from serving.models import Model as Model
from serving.models import Price as Price
from serving.models import Provider as Provider
from serving.models import Variant as Variant
from serving.models import Vetted as Vetted
from serving.named import check_names
from serving.site import OWN_NETWORKS as OWN_NETWORKS
from serving.site import Attached as Attached
from serving.site import Costs as Costs
from serving.site import EngineChoice as EngineChoice
from serving.site import EscalationRule as EscalationRule
from serving.site import KeyDefaults as KeyDefaults
from serving.site import Privacy as Privacy
from serving.site import RouterSettings as RouterSettings
from serving.site import RouteSettings as RouteSettings
from serving.site import Site as Site
from serving.site import Swap as Swap
from serving.site import TeamSettings as TeamSettings
from serving.site import Words as Words
from serving.terms import ABILITIES as ABILITIES
from serving.terms import LANES as LANES
from serving.terms import NO_OUTPUT as NO_OUTPUT
from serving.terms import REQUIREMENT as REQUIREMENT
from serving.terms import RESERVED_NAMES as RESERVED_NAMES
from serving.terms import Ability as Ability
from serving.terms import DataClass as DataClass
from serving.terms import Record
from serving.terms import Route as Route
from serving.yamlfile import ConfigError as ConfigError
from serving.yamlfile import YamlFile


class Shipped(Record):
    """The form of models.yaml."""

    version: Literal[1]
    providers: dict[str, Provider]
    models: tuple[Model, ...]


class Catalogue(Record):
    """Everything that is configured, checked and frozen."""

    models: dict[str, Model]
    providers: dict[str, Provider]
    site: Site = Site()
    path: Path | None = None
    """The headgate.yaml read, if there was one."""
    version: str = ""
    """Hash over what decides where data may go; the policy version of records and permits."""
    _reach: tuple[dict[str, Model], dt.date, dict[str, DataClass]] | None = PrivateAttr(None)

    def enabled(self, model: Model) -> bool:
        """Whether a hosted model's provider is switched on. Local models are always."""
        return model.place == "local" or self.providers[model.provider].enabled

    def hosted(self) -> list[Model]:
        """The hosted models whose provider is enabled."""
        return [m for m in self.models.values() if m.place == "hosted" and self.enabled(m)]

    def reach(self, today: dt.date) -> Mapping[str, DataClass]:
        """By lane, the highest class that some model outside may receive on that day. Worked out once a day.

        A lane in which nobody outside answers is not there.
        """
        known = self._reach
        if known is not None and known[0] is self.models and known[1] == today:
            return known[2]
        found: dict[str, DataClass] = {}
        off = {name for name, provider in self.providers.items() if not provider.enabled}
        for model in self.models.values():
            if model.place == "hosted" and model.provider not in off:
                cleared = model.cleared_for(today)
                found |= {lane: max(cleared, found.get(lane, cleared)) for lane in model.lanes}
        self._reach = (self.models, today, found)
        return found

    def find(self, name: str) -> Model:
        """The entry called `name`. Raises ConfigError naming the close ones."""
        if name in self.models:
            return self.models[name]
        if by_repo := [m for m in self.models.values() if name and m.repo == name]:
            return by_repo[0]
        known = ", ".join(n for n, m in self.models.items() if m.place == "local")
        raise ConfigError(f"no model is called {name!r}; the local models are: {known}")


def shipped_path() -> Path:
    """models.yaml: inside the installed package, else at the top of the checkout."""
    here = Path(__file__).parent
    inside = here / "models.yaml"
    return inside if inside.exists() else here.parent / "models.yaml"


def find_site(given: Path | None, folders: Iterable[Path]) -> Path | None:
    """The headgate.yaml to use: the one given, else the first that lies in `folders`. Raises ConfigError."""
    # A link that leads nowhere is not one that is not there: whoever made it means another file than the defaults.
    there = (path for f in folders if os.path.lexists(path := f / "headgate.yaml"))
    found = given or next(there, None)
    if found is not None and not found.is_file():
        wrong = "is a folder, not a file" if found.is_dir() else "no such file; write one with: headgate config init"
        raise ConfigError(f"{found}: {wrong}")
    return found


def load(site_path: Path | None = None, shipped: Path | None = None) -> Catalogue:
    """Read both files and lay one over the other. Raises ConfigError with file and line."""
    base = yamlfile.read(shipped or shipped_path()).check(Shipped)
    models = {m.name: m for m in base.models}
    if len(models) != len(base.models):
        raise ConfigError(f"{shipped or shipped_path()}: two models share a name")
    providers = dict(base.providers)
    site = Site()
    if site_path is not None:
        file = yamlfile.read(site_path)
        site = file.check(Site)
        providers |= {n: _overlaid(file, ("providers", n), Provider, providers.get(n)) for n in site.providers}
        models |= {n: _overlaid(file, ("models", n), Model, models.get(n), name=n) for n in site.models}
        check_names(file, site, models, providers)
    models = {name: _with_promises(model, providers) for name, model in models.items()}
    return Catalogue(
        models=models, providers=providers, site=site, path=site_path, version=_version(models, providers, site)
    )


def _with_promises(model: Model, providers: Mapping[str, Provider]) -> Model:
    """A hosted model with what its provider promises, where its own entry does not say."""
    if model.place == "local":
        return model
    provider = providers[model.provider]
    unsaid = [name for name in PROMISES if getattr(model, name) is None and getattr(provider, name) is not None]
    return model.model_copy(update={name: getattr(provider, name) for name in unsaid}) if unsaid else model


def _overlaid(file: YamlFile, path: tuple[str, str], kind: type[Any], under: BaseModel | None, **fixed: str) -> Any:
    """The site's fields over the shipped record, checked as a whole so that a line can be named."""
    given = file.data[path[0]][path[1]]
    below = under.model_dump(exclude_unset=True) if under else {}
    shadow = YamlFile.__new__(YamlFile)
    shadow.path, shadow.data = file.path, {**below, **given, **fixed}
    shadow.lines = {key[2:]: line for key, line in file.lines.items() if key[:2] == path}
    try:
        return shadow.check(kind)
    except ConfigError as broken:
        raise ConfigError(str(broken).replace(": ", f": {path[0]}.{path[1]}: ", 1)) from broken


def _version(models: dict[str, Model], providers: dict[str, Provider], site: Site) -> str:
    """A hash over the fields that decide where data may go, so that router and door can compare."""
    parts = [_canonical(m) for m in models.values() if m.place == "hosted"]
    parts += [f"{name}={_canonical(p)}" for name, p in providers.items()]
    parts += [_canonical(site.keys), _canonical(site.privacy)]
    parts += [f"team {name}={_canonical(team)}" for name, team in site.teams.items()]
    # Of a route only what decides where its data may go.
    parts += [f"route {name}={route.data_class} {sorted(route.requires)}" for name, route in site.routes.items()]
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16]


def _canonical(record: Record) -> str:
    """JSON that is the same in every process: sets have another order in each."""
    fields = record.model_dump()
    sets = {name: sorted(value) for name, value in fields.items() if isinstance(value, frozenset)}
    return json.dumps({**fields, **sets}, sort_keys=True, default=str)
