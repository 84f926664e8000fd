"""`up`, `down`, `status`, `logs`: the processes of this machine as a person sees them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from router import keeper
from router.commands import progress
from router.commands.context import (
    ConfigOption,
    Context,
    JsonOption,
    Stop,
    ask_socket,
    console,
    open_context,
    say_json,
    yes_no,
)  # fmt: skip
from router.commands.keys import first_key
from router.listen import Listen, check_free, check_public
from serving import placement, probe, processes
from serving.catalogue import ConfigError, Model
from serving.gpus import main_memory_free_gb
from serving.gpus import read as read_gpus

DEMO = "demo"


def up(
    port: Annotated[int, typer.Option(help="Port for callers.", min=1, max=65535)] = 8080,
    host: Annotated[
        str, typer.Option(help="Address for callers; others than loopback need TLS or a proxy.")
    ] = "127.0.0.1",
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="With --detach: return when everything is ready.")] = False,
    model: Annotated[list[str] | None, typer.Option(help="Model to start (repeatable).")] = None,
    attach: Annotated[
        list[str] | None, typer.Option(help="URL of a vLLM server that runs already (repeatable).")
    ] = None,
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
    if found := keeper.running(context.home):
        out.print("Headgate runs already; to start it with other options: headgate down")
        welcome(context, found.url, out)
        return
    listen = Listen(host, port, str(tls_cert) if tls_cert else None, str(tls_key) if tls_key else None)
    check_public(listen, behind_proxy)
    _end_leftovers(context, out)
    check_free(listen)
    names = _choose(context, model or [], attach or [], yes, out)
    scheme = "https" if tls_cert else "http"
    url = f"{scheme}://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104
    child = _start(context, names, attach or [], _listen_args(listen, behind_proxy))
    keeper.note(context.home, child.pid, url, str(tls_cert.absolute()) if tls_cert else "")
    try:
        if detach and not wait:
            out.print("Headgate is starting; follow it with: headgate status")
            welcome(context, url, out, names)
            return
        progress.follow(context.home, child, out)
        welcome(context, url, out, names)
        if not detach:
            out.print("Ctrl-C stops all of it.")
            child.wait()
            raise Stop(f"Headgate ended by itself; see {context.home.logs}")
    except (KeyboardInterrupt, Stop):
        out.print("Stopping …")
        _stop(context, child.pid, out)
        if sys.exc_info()[0] is not KeyboardInterrupt:
            raise


def down() -> None:
    """Stop everything of this installation: router, door, serving and its engines.

    Example: headgate down
    """
    from serving.home import find_home

    out, home = console(), find_home()
    found = keeper.running(home)
    count = len(processes.ours(home.installation())) if home.secrets.is_dir() else 0
    if not found and not count:
        out.print("Nothing of this installation runs.")
        return
    _stop_all(home.installation(), found.pid if found else None)
    out.print(f"Stopped; {count} processes ended, none left.")


def status(as_json: JsonOption = False) -> None:
    """Show what runs: models, GPUs, the door, and the last lines of a log where something is wrong.

    Example: headgate status --json
    """
    from serving.home import find_home

    home, out = find_home(), console()
    found = keeper.running(home)
    try:
        state: dict[str, Any] = ask_socket(home, "admin", "/status")
    except Stop:
        try:
            state = {"serving": ask_socket(home, "serving", "/instances"), "endpoints": [], "door": None}
        except Stop as nothing:
            if as_json:
                say_json({"running": False})
                raise typer.Exit(1) from nothing
            raise
    if as_json:
        say_json({"running": True, "url": found.url if found else None, **state})
        return
    progress.show_status(state, found.url if found else "", out)


def logs(
    name: Annotated[str, typer.Argument(help="keeper, serving, door, router, or a model's name.")] = "",
    lines: Annotated[int, typer.Option("-n", help="How many lines.", min=1)] = 50,
    follow: Annotated[bool, typer.Option("-f", help="Go on as lines come.")] = False,
) -> None:
    """Show the end of a log; without a name, which logs there are.

    Example: headgate logs demo -n 20
    """
    from serving.home import find_home

    folder = find_home().logs
    known = sorted(p.stem for p in folder.glob("*.log")) if folder.is_dir() else []
    if not name:
        table = Table("log", "bytes", "file", box=None)
        for each in known:
            path = folder / f"{each}.log"
            table.add_row(each, str(path.stat().st_size), str(path))
        console().print(table if known else "There are no logs yet.")
        return
    if name not in known:
        raise Stop(f"there is no log called {name!r}; there are: {', '.join(known) or 'none yet'}")
    # tail(1) is on every system this runs on, and follows rotated files as well.
    subprocess.run(["tail", "-n", str(lines), *(["-F"] if follow else []), str(folder / f"{name}.log")], check=False)


def welcome(context: Context, url: str, out: Console, names: list[str] | None = None) -> None:
    """The endpoint, a key with its data class, and a curl line that works when pasted."""
    key, text = first_key(context)
    served = names[0] if names else "auto"
    out.print()
    if names == [DEMO]:
        out.print("The demo model answers with NOISE: it is tiny and its weights are random. For a real model:")
        out.print("    headgate down; headgate up --model qwen3.5-0.8b     (needs a model hub)")
    out.print(f"endpoint  {url}/v1")
    out.print(f"key       {text}", soft_wrap=True)
    out.print(
        f"          data class {key.data_class.name}, team {key.team}; change it with: headgate keys set {key.id}"
    )
    out.print()
    out.print(
        f"curl {url}/v1/chat/completions -H 'Authorization: Bearer {text}' -H 'Content-Type: application/json' "
        f'-d \'{{"model": "{served}", "messages": [{{"role": "user", "content": "Hello"}}]}}\'',
        soft_wrap=True,
    )
    out.print()


def _choose(context: Context, names: list[str], attach: list[str], yes: bool, out: Console) -> list[str]:
    """What starts: the names given, else those of headgate.yaml, else what fits and is agreed to, else the demo."""
    site = context.found.site
    if names:
        return [DEMO if n == DEMO else _local(context.found.find(n)).name for n in names]
    if attach:
        return []  # an attached server is all that was asked for; no engine is made
    if site.run or site.attach:
        return list(site.run)
    if asyncio.run(probe.hub_reachable()):
        readings = read_gpus()
        fitting = placement.suggest(context.found.models.values(), readings, main_memory_free_gb())
        if fitting is not None:
            size = f"{fitting.size_gb:g} GB to fetch once" if fitting.size_gb else "size unknown"
            question = f"No model is configured. Start {fitting.name} ({fitting.repo}, {size})?"
            if yes_no(question, yes, out):
                return [fitting.name]
    return [DEMO]


def _local(model: Model) -> Model:
    if model.place == "hosted":
        raise ConfigError(
            f"{model.name} is hosted and cannot be started; enable it: headgate providers add {model.provider}"
        )
    return model


def _start(context: Context, names: list[str], attach: list[str], listen: list[str]) -> subprocess.Popen[bytes]:
    home, found = context.home, context.found
    args = [sys.executable, "-m", "router.keeper"]
    if found.path:
        args += ["--config", str(found.path)]
    serving = [f"--model={n}" for n in names] + [f"--attach={u}" for u in attach]
    args += [f"--serving={a}" for a in serving] + [f"--listen={a}" for a in listen]
    environment = keeper.environment(home, os.environ)
    with (home.logs / "keeper.log").open("ab") as log:
        return subprocess.Popen(
            args, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=home.root,
            start_new_session=True,
        )  # fmt: skip


def _listen_args(listen: Listen, behind_proxy: bool) -> list[str]:
    args = [f"--host={listen.host}", f"--port={listen.port}"]
    if listen.tls_cert:
        args += [f"--tls-cert={Path(listen.tls_cert).absolute()}", f"--tls-key={Path(listen.tls_key or '').absolute()}"]
    return args + (["--behind-proxy"] if behind_proxy else [])


def _end_leftovers(context: Context, out: Console) -> None:
    """End what an earlier, killed `up` left behind."""
    left = processes.ours(context.home.installation())
    if left:
        out.print(f"Ending {len(left)} processes that an earlier start left behind …")
        _stop_all(context.home.installation(), None)


def _stop(context: Context, pid: int, out: Console) -> None:
    _stop_all(context.home.installation(), pid)
    out.print("Stopped; nothing of it is left.")


def _stop_all(installation: str, keeper_pid: int | None) -> None:
    """Ask the keeper to end everything in order; then end what is left."""
    if keeper_pid is not None and any(p.pid == keeper_pid for p in processes.ours(installation)):
        os.kill(keeper_pid, signal.SIGTERM)
        patience = time.monotonic() + sum(keeper.STOP_S.values())
        while time.monotonic() < patience and any(p.pid == keeper_pid for p in processes.ours(installation)):
            time.sleep(0.1)
    stuck = asyncio.run(processes.end(processes.ours(installation), grace_s=10))
    if stuck:
        raise Stop(f"{len(stuck)} processes will not end (stuck in the kernel): {', '.join(str(p.pid) for p in stuck)}")
