"""`up`, `down`: the processes of this machine, started and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from router import keeper, listen
from router.commands import progress
from router.commands.choosing import check_attached, choose
from router.commands.context import ConfigOption, Context, Stop, console, open_context
from router.commands.welcome import welcome
from router.listen import Listen
from serving import processes
from serving.home import Home, find_home

PortOption = Annotated[int, typer.Option(help="Port for callers.", min=1, max=65535)]
HostOption = Annotated[str, typer.Option(help="Address for callers; others than loopback need TLS or a proxy.")]
ModelsOption = Annotated[list[str] | None, typer.Option(help="Model to start (repeatable).")]
AttachOption = Annotated[list[str] | None, typer.Option(help="URL of a vLLM server that runs already (repeatable).")]


OPTIONS = ("port", "host", "model", "attach", "tls_cert", "tls_key", "behind_proxy")
"""What counts at the start only."""


def up(
    asked: typer.Context,
    port: PortOption = 8080,
    host: HostOption = "127.0.0.1",
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="With --detach: return when everything is ready.")] = False,
    model: ModelsOption = None,
    attach: AttachOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Agree to what would be asked.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate file, to answer other machines.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key file.")] = None,
    behind_proxy: Annotated[bool, typer.Option("--behind-proxy", help="A proxy in front speaks TLS.")] = False,
    config: ConfigOption = None,
) -> None:
    """Make what is missing, start everything, and print an endpoint, a key and a curl line.

    Example: headgate up --detach --wait
    """
    out, context = console(), open_context(config)
    at = Listen(host, port, _absolute(tls_cert), _absolute(tls_key))
    started = None
    with keeper.only_one(context.home, "up"):
        found = keeper.running(context.home)
        if found is None:
            started = _begin(context, at, behind_proxy, model or [], attach or [], yes, foreground=not detach, out=out)
    if started is None:
        assert found is not None
        _runs_already(context, found, _given(asked), wait, out)
    elif detach and not wait:
        out.print("Headgate is starting; follow it with: headgate status")
        welcome(context, started.running, out, started.names)
    else:
        _see_through(context, started, detach, out)


def _given(asked: typer.Context) -> list[str]:
    """The options on the command line that count at the start only."""
    sources = {name: asked.get_parameter_source(name) for name in OPTIONS}
    return [f"--{n.replace('_', '-')}" for n, source in sources.items() if source and source.name == "COMMANDLINE"]


def _runs_already(context: Context, found: keeper.Running, given: list[str], wait: bool, out: Console) -> None:
    """Say where it answers, and whether it does yet. Raises Stop where options were given that change nothing now."""
    if given:
        raise Stop(f"Headgate runs already, and {', '.join(given)} cannot take effect; first: headgate down")
    out.print("Headgate runs already; to start it with other options: headgate down")
    start = progress.Start(context.home, found.alive, found.url, _size(context.home))
    if wait:
        progress.follow(start, out)
    elif progress.starting(start):
        out.print("It is still starting; follow it with: headgate status")
    progress.show_closed(context.home, _enabled(context), out)
    welcome(context, found, out)


def _enabled(context: Context) -> list[str]:
    return [name for name, provider in context.found.providers.items() if provider.enabled]


@dataclass(frozen=True, slots=True)
class Started:
    """A keeper that was just started."""

    child: subprocess.Popen[bytes]
    running: keeper.Running
    names: list[str]
    progress: progress.Start


def _begin(
    context: Context, at: Listen, behind_proxy: bool, models: list[str], attach: list[str], yes: bool, *,
    foreground: bool, out: Console,
) -> Started:  # fmt: skip
    """Check everything that can be checked before something runs, then start the keeper. Raises ConfigError, Stop."""
    listen.check_public(at, behind_proxy)
    insisted = check_attached(attach, context.found.site)
    names = choose(context, models, attach, yes, out)
    _end_leftovers(context.home, out)
    listen.check_free(at)
    if admin_port := context.found.site.router.admin_port:
        listen.check_free(Listen(port=admin_port), "router.admin_port in headgate.yaml")
    since = _size(context.home)
    child = _start(context, names, attach, _listen_args(at, behind_proxy), foreground)
    running = keeper.note(context.home, child.pid, listen.url(at), at.tls_cert or "")
    follow = progress.Start(
        context.home, lambda: child.poll() is None, running.url, since, insisted, context.site_path
    )  # fmt: skip
    return Started(child, running, names, follow)


def _see_through(context: Context, started: Started, detach: bool, out: Console) -> None:
    """Wait until all is ready, and in the foreground until the end. Leaves something running only if told to."""
    keep = False
    try:
        with _ended_like_ctrl_c():
            progress.follow(started.progress, out)
            progress.show_closed(context.home, _enabled(context), out)
            welcome(context, started.running, out, started.names)
            keep = detach
            if not detach:
                out.print("Ctrl-C stops all of it.")
                started.child.wait()
                raise Stop(f"Headgate ended by itself; see {context.home.logs / 'keeper.log'}")
    except KeyboardInterrupt:
        if detach:
            raise typer.Exit(130) from None
    finally:
        if not keep:
            out.print("Stopping …")
            _stop_all(context.home, started.child.pid)
            out.print("Stopped; nothing of it is left.")


def down() -> None:
    """Stop everything of this installation: router, door, serving and its engines.

    Example: headgate down
    """
    out, home = console(), find_home()
    found = keeper.running(home)
    # Asking for the id would make one.
    count = len(processes.ours(home.installation())) if home.secrets.is_dir() else 0
    if not found and not count:
        out.print("Nothing of this installation runs.")
        return
    out.print("Stopping …")
    _stop_all(home, found.pid if found else None)
    out.print(f"Stopped; {count} processes ended, none left.")


def _start(
    context: Context, names: list[str], attach: list[str], listen_args: list[str], foreground: bool
) -> subprocess.Popen[bytes]:
    home, found = context.home, context.found
    args = [sys.executable, "-P", "-m", "router.keeper"]
    if found.path:
        args += ["--config", str(found.path)]
    serving = [f"--model={n}" for n in names] + [f"--attach={u}" for u in attach]
    args += [f"--serving={a}" for a in serving] + [f"--listen={a}" for a in listen_args]
    # In the foreground the keeper holds the other end of a pipe and ends when this process does, however that ends.
    args += ["--parent-pipe"] if foreground else []
    with (home.logs / "keeper.log").open("ab") as log:
        return subprocess.Popen(
            args, stdin=subprocess.PIPE if foreground else subprocess.DEVNULL, stdout=log, stderr=log,
            env=keeper.environment(home, os.environ), cwd=home.root, start_new_session=True,
        )  # fmt: skip


def _listen_args(at: Listen, behind_proxy: bool) -> list[str]:
    args = [f"--host={at.host}", f"--port={at.port}"]
    if at.tls_cert:
        args += [f"--tls-cert={at.tls_cert}", f"--tls-key={at.tls_key}"]
    return args + (["--behind-proxy"] if behind_proxy else [])


def _absolute(path: Path | None) -> str | None:
    return str(path.expanduser().absolute()) if path else None


def _size(home: Home) -> int:
    """Bytes of the keeper's log."""
    with contextlib.suppress(FileNotFoundError):
        return (home.logs / "keeper.log").stat().st_size
    return 0


def _end_leftovers(home: Home, out: Console) -> None:
    """End what an earlier, killed `up` left behind."""
    left = processes.ours(home.installation())
    if left:
        out.print(f"Ending {len(left)} processes that an earlier start left behind …")
        _stop_all(home, None)


def _stop_all(home: Home, keeper_pid: int | None) -> None:
    """Ask the keeper to end everything in order; then end what is left. A second Ctrl-C leaves the order out."""
    installation = home.installation()
    try:
        if keeper_pid is not None and _runs(installation, keeper_pid):
            os.kill(keeper_pid, signal.SIGTERM)
            patience = time.monotonic() + sum(keeper.STOP_S.values())
            while time.monotonic() < patience and _runs(installation, keeper_pid):
                time.sleep(0.1)
        stuck = asyncio.run(processes.end(processes.ours(installation), grace_s=10))
    except KeyboardInterrupt:
        stuck = asyncio.run(processes.end(processes.ours(installation), grace_s=1))
    if stuck:
        raise Stop(f"{len(stuck)} processes will not end (stuck in the kernel): {', '.join(str(p.pid) for p in stuck)}")


def _runs(installation: str, pid: int) -> bool:
    return any(p.pid == pid for p in processes.ours(installation))


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, and a terminal that is closed, stop everything as Ctrl-C does. nohup's choice is kept."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
