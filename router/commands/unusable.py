"""What is well written in headgate.yaml and could never work all the same, each with its line: `config check` says it.

Only files are looked for, and own patterns compiled and tried: nobody is asked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from serving import yamlfile
from serving.attached import provider_hosts, refusal
from serving.catalogue import Catalogue, Privacy
from serving.yamlfile import Path_


def sentences(found: Catalogue, below: Path_ = ()) -> list[str]:
    """Each with file, line and setting; only those of settings at or below `below`."""
    if found.path is None:
        return []
    file = yamlfile.read(found.path)
    return [str(file.error(at, text)) for at, text in _unusable(found) if at[: len(below)] == below]


def _unusable(found: Catalogue) -> Iterator[tuple[Path_, str]]:
    hosts = provider_hosts(found.providers.values())
    files: dict[Path_, str] = {}
    for index, attached in enumerate(found.site.attach):
        if refused := refusal(attached, hosts, found.site.inside):
            yield ("attach", index), refused
        files |= {("attach", index, "ca_file"): attached.ca_file, ("attach", index, "key_file"): attached.key_file}
    for name, provider in found.providers.items():
        if provider.enabled:
            at: Path_ = ("providers", name)
            yield from ((at, refused) for refused in barred(found, name))
            files |= {(*at, "ca_file"): provider.ca_file, (*at, "key_file"): provider.key_file}
    files["engine", "python"] = found.site.engine.python
    yield from _missing(files)
    yield from _unfound(found.site.privacy)


def barred(found: Catalogue, name: str) -> list[str]:
    """Why the door could send nothing to this provider, whatever its name leads to; empty where it could."""
    # Here, since the client that the door sends with takes long to import.
    from router.door.destination import DestinationError, check

    try:
        check(found.providers[name])
    except DestinationError as wrong:
        return [str(wrong)]
    return []


def _missing(files: dict[Path_, str]) -> Iterable[tuple[Path_, str]]:
    for at, file in files.items():
        # A certificate authority's path is taken as it stands, so `~` in it names no home folder.
        path = Path(file) if at[-1] == "ca_file" else Path(file).expanduser()
        if file and not path.is_file():
            yield at, f"{file} does not exist"


def _unfound(privacy: Privacy) -> Iterator[tuple[Path_, str]]:
    """Why a start would find no use for the site's effects, or for its own words and patterns; nothing leaves then."""
    if not (privacy.effects or privacy.own):
        return
    # Here, since the package that compiles them takes long to import.
    from router.scanner import rules
    from router.scanner.scanner import Scanner, ScannerError

    try:
        rules.of(privacy)
    except rules.UnknownKind as wrong:
        said = str(wrong).removeprefix("privacy.effects: ")
        named = [name for name in privacy.effects if said.startswith(repr(name))]
        yield ("privacy", "effects", *named), said
    if privacy.own:
        with tempfile.TemporaryDirectory() as folder:
            try:
                Scanner(rules.of(Privacy(own=privacy.own), ()), Path(folder))
            except ScannerError as wrong:
                yield ("privacy", "own"), str(wrong)
