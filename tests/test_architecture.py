"""The house is built as the design pages say: who may import whom, what may connect, what is pure.

Every check is a function over a mapping of path to source, so that `test_each_check_can_fail` can hand it a broken one.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.house import ROOT, Check, Tree, called, fits, imports, module_of, modules_of, tree, within

LOW = ("router.records", "router.errors", "serving.catalogue")
MIDDLE = ("router.scanner", "router.decision", "router.upstream", "router.ledger")
"""They never import each other; only the pipeline and the joining files know more than one."""

# File or folder → what of ours it may import besides its own folder. The longest entry that fits a file counts.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "serving/yamlfile.py": (),
    "serving/home.py": (),
    "serving/parameters.py": ("serving.terms",),
    "serving/terms.py": (),
    "serving/models.py": ("serving.terms",),
    "serving/site.py": ("serving.terms",),
    "serving/isolation.py": (),
    "serving/named.py": ("serving.isolation", "serving.models", "serving.site", "serving.yamlfile"),
    "serving/catalogue.py": (
        "serving.models", "serving.named", "serving.site", "serving.terms", "serving.yamlfile",
    ),
    "serving/device.py": (),
    "serving/energy.py": (),
    "serving/gpus.py": ("serving.device", "serving.energy"),
    "serving/xids.py": ("serving.device",),
    "serving/monitor.py": ("serving.gpus", "serving.processes", "serving.xids"),
    "serving/processes.py": (),
    "serving/probe.py": (),
    "serving/scrape.py": (),
    "serving/reasons.py": (),
    "serving/weights.py": (),
    "serving/engines.py": ("serving.catalogue",),
    "serving/demo_model.py": ("serving.catalogue",),
    "serving/tensors.py": (),
    "serving/shapes.py": ("serving.tensors",),
    "serving/need.py": ("serving.shapes",),
    "serving/options.py": ("serving.catalogue", "serving.need", "serving.shapes"),
    "serving/spare.py": ("serving.catalogue", "serving.gpus", "serving.options"),
    "serving/remedies.py": ("serving.catalogue", "serving.gpus", "serving.options", "serving.spare"),
    "serving/placement.py": (
        "serving.catalogue", "serving.gpus", "serving.need", "serving.options", "serving.remedies", "serving.spare",
    ),
    "serving/boards.py": ("serving.gpus",),
    "serving/known.py": (
        "serving.catalogue", "serving.demo_model", "serving.engines", "serving.gpus", "serving.home", "serving.options",
        "serving.placement", "serving.shapes",
    ),
    "serving/command.py": ("serving.placement", "serving.spare"),
    "serving/instance.py": ("serving.command", "serving.home", "serving.probe", "serving.processes", "serving.reasons"),
    "serving/endpoint.py": ("serving.instance", "serving.probe", "serving.scrape"),
    "serving/life.py": ("serving.endpoint", "serving.processes"),
    "serving/memory.py": ("serving.gpus", "serving.placement", "serving.spare"),
    "serving/swapping.py": (),
    "serving/turns.py": (),
    "serving/stay.py": ("serving.endpoint", "serving.instance", "serving.scrape", "serving.swapping"),
    "serving/sharing.py": ("serving.stay", "serving.swapping"),
    "serving/groups.py": ("serving.catalogue", "serving.gpus", "serving.placement", "serving.spare"),
    "serving/attached.py": (
        "serving.catalogue", "serving.endpoint", "serving.instance", "serving.life", "serving.probe",
    ),
    "serving/local.py": (
        "serving.command", "serving.endpoint", "serving.engines", "serving.gpus", "serving.home", "serving.instance",
        "serving.isolation", "serving.life", "serving.memory", "serving.placement", "serving.probe",
        "serving.processes", "serving.stay", "serving.turns", "serving.weights",
    ),
    "serving/supervisor.py": (
        "serving.attached", "serving.catalogue", "serving.demo_model", "serving.endpoint", "serving.engines",
        "serving.gpus", "serving.home", "serving.local", "serving.placement", "serving.processes", "serving.sharing",
        "serving.stay", "serving.weights",
    ),
    "serving/status.py": ("serving.endpoint", "serving.gpus", "serving.supervisor"),
    "serving/__main__.py": ("serving",),
    "router/live.py": (),
    "router/records.py": ("router.live", "serving.catalogue"),
    "router/errors.py": (),
    "router/permit.py": (),
    "router/proxies.py": (),
    "router/traces.py": (),
    "router/clock.py": (),
    "router/scanner/": ("router.records", "serving.catalogue"),
    "router/decision/": (*LOW, "serving.parameters"),
    "router/upstream/": (*LOW, "router.permit"),
    "router/upstream/address.py": (),
    "router/upstream/response.py": ("router.upstream.address",),
    "router/upstream/drain.py": (),
    "router/upstream/batch.py": ("router.upstream.drain",),
    "router/upstream/health.py": (),
    "router/upstream/fading.py": (),
    "router/upstream/queue.py": (),
    "router/upstream/names.py": (),
    "router/upstream/prefixes.py": ("router.records",),
    "router/upstream/wording.py": (),
    "router/upstream/chunks.py": (),
    "router/upstream/tuning.py": (),
    "router/upstream/wire.py": (
        "router.upstream.address", "router.upstream.chunks", "router.upstream.response", "router.upstream.tuning",
    ),
    "router/upstream/pool.py": ("router.upstream.address", "router.upstream.wire"),
    "router/upstream/connection.py": (
        "router.upstream.address", "router.upstream.names", "router.upstream.pool", "router.upstream.response",
        "router.upstream.wire",
    ),
    "router/upstream/events.py": ("router.records",),
    "router/upstream/said.py": ("router.records",),
    "router/upstream/sse.py": ("router.records", "router.upstream.events"),
    "router/ledger/": LOW,
    "router/ledger/chain.py": (),
    "router/ledger/counted.py": (),
    "router/ledger/ends.py": (),
    "router/ledger/openings.py": (),
    "router/ledger/schema.py": (),
    "router/ledger/settled.py": ("router.ledger.chain",),
    "router/ledger/store.py": ("router.ledger.chain", "router.ledger.schema", "router.ledger.settled"),
    "router/ledger/counters.py": (),
    "router/audit/": ("router.ledger", "router.door.book", "serving.home"),
    "router/audit/overhead.py": (),
    "router/audit/reconcile.py": (),
    "router/audit/counters.py": ("router.audit.overhead",),
    "router/door/": (
        *LOW, "router.audit.counters", "router.child", "router.clock", "router.permit", "router.proxies",
        "router.scanner", "router.traces", "serving.home", "serving.parameters", "serving.yamlfile",
    ),
    "router/backlog.py": (),
    "router/gate.py": ("router.backlog", "router.records", "router.scanner", "serving.catalogue"),
    "router/pipeline.py": (*MIDDLE, "router.gate", "router.records", "router.errors"),
    "router/api/": (*LOW, "router.pipeline", "router.ledger"),
    # The joining files.
    "router/commands/": ("router", "serving"),
    "router/keeper.py": ("router", "serving"),
    "router/listen.py": ("router", "serving"),
    "router/cli.py": ("router", "serving"),
    "router/app.py": ("router", "serving"),
    "router/overview.py": (*MIDDLE, "router.gate", "router.records", "router.watchdog", "serving"),
    "router/workers.py": ("router", "serving"),
    "router/siblings.py": ("router", "serving"),
    "router/child.py": (),
    "router/watchdog.py": (),
    "router/__main__.py": ("router", "serving"),
}  # fmt: skip

PURE = ("router/decision/", "router/permit.py", "router/scanner/reading.py", "serving/placement.py",
        "serving/command.py", "serving/scrape.py")  # fmt: skip
"""And every module whose docstring says that it is pure."""
PURE_IMPORTS = frozenset({
    "__future__", "array", "base64", "binascii", "bisect", "collections", "collections.abc", "dataclasses", "datetime",
    "enum", "functools", "hashlib", "heapq", "hmac", "html", "ipaddress", "itertools", "json", "jsonschema_rs", "math",
    "operator", "orjson", "pathlib", "phonenumbers", "re", "router", "serving", "shlex", "signal", "string", "struct",
    "types", "typing", "unicodedata", "urllib.parse",
})  # fmt: skip
IMPURE_CALLS = frozenset({
    "open", "print", "input", "exec", "eval", "now", "today", "utcnow", "read_text", "read_bytes", "write_text",
    "write_bytes", "exists", "is_file", "is_dir", "stat", "iterdir", "glob", "mkdir", "unlink", "resolve", "absolute",
    "expanduser", "cwd", "home", "raise_signal", "alarm",
})  # fmt: skip

CLIENTS = ("http.client", "urllib.request", "aiohttp", "httpx", "requests", "httptools", "urllib3", "websockets",
           "openai", "ftplib", "smtplib", "xmlrpc", "telnetlib", "pycurl", "huggingface_hub")  # fmt: skip
CONNECTING = frozenset({
    "create_connection", "create_unix_connection", "open_connection", "open_unix_connection", "sock_connect",
    "create_datagram_endpoint", "sendto", "sendmsg", "connect_ex", "urlopen", "start_tls", "HTTPConnection",
    "HTTPSConnection",
})  # fmt: skip
LOOKING_UP = frozenset({"getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo"})
"""A look-up leaves the machine too, and the name itself is data."""
MAY_CONNECT = {
    "router/upstream/connection.py": "the router's one way to an upstream",
    "router/upstream/wire.py": "one socket of it, once it is connected",
    "router/door/": "the only way out",
    "serving/probe.py": "serving's way to the engines and attached servers of this host, never to a caller's address",
    "serving/isolation.py": "datagram sockets that nothing is written to: they ask the kernel whether it knows a way",
}
MAY_LOOK_UP = {
    **MAY_CONNECT,
    "router/upstream/names.py": "names of attached servers; what they lead to must lie in the site's own networks",
    "router/listen.py": "the address of this machine that callers are answered at",
}
MAY_NAME_ADDRESSES = {"router/commands/talk.py": "this installation's own router, as `up` wrote it down"}
"""Who else is connected to is a Unix socket: serving, the door, a router's own workers."""
MAY_MAKE_SOCKETS = MAY_LOOK_UP
"""Others make Unix sockets only."""
MAY_PARSE = {"router/api/heads.py": "the server's side of HTTP: it reads what callers send"}
MAY_FETCH = {"serving/weights.py": "its script part, in the engine's Python: weights from the model hub"}


def wrong_imports(sources: Tree) -> list[str]:
    found = []
    modules = modules_of(sources) | modules_of(tree())
    for path, source in sources.items():
        if path.endswith("__init__.py"):
            found += [f"{path}: a package's __init__ imports nothing" for _ in [*imports(source)][:1]]
            continue
        entry = fits(path, MAY_IMPORT)
        if entry is None:
            found.append(f"{path}: is not in the table MAY_IMPORT")
            continue
        allowed = MAY_IMPORT[entry] + ((module_of(entry.rstrip("/")),) if entry.endswith("/") else ())
        for name, line in imports(source, modules):
            if name.split(".")[0] in ("serving", "router") and not within(name, allowed):
                found.append(f"{path}:{line}: imports {name}; allowed: {', '.join(allowed) or 'nothing of ours'}")
    return found


def upward_imports(sources: Tree) -> list[str]:
    """What holds whatever the table says: serving knows no router; the middle folders do not know each other."""
    found = []
    for path, source in sources.items():
        here = module_of(path)
        own = next((m for m in MIDDLE if within(here, (m,))), None)
        for name, line in imports(source):
            if here.startswith("serving") and within(name, ("router",)):
                found.append(f"{path}:{line}: serving imports {name}")
            if own and any(within(name, (other,)) for other in MIDDLE if other != own):
                found.append(f"{path}:{line}: {own} imports {name}")
    return found


def cycles(sources: Tree) -> list[str]:
    modules = modules_of(sources)
    graph = {module_of(p): {n for n, _ in imports(s, modules) if n in modules} for p, s in sources.items()}
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> list[str]:
        if module in way:
            return [" → ".join((*way[way.index(module) :], module))]
        if module in done:
            return []
        found = [cycle for after in sorted(graph[module]) for cycle in walk(after, (*way, module))]
        done.add(module)
        return found

    return [cycle for module in sorted(graph) for cycle in walk(module, ())]


def way_out(sources: Tree) -> list[str]:
    """Clients and outgoing connections where none belong."""
    found = []
    for path, source in sources.items():
        clients = CLIENTS[:-1] if fits(path, MAY_FETCH) else CLIENTS
        if fits(path, MAY_PARSE):
            clients = tuple(name for name in clients if name != "httptools")
        if fits(path, MAY_CONNECT):
            continue
        found += [f"{path}:{line}: imports {name}" for name, line in imports(source) if within(name, clients)]
        for node in ast.walk(ast.parse(source)):
            if (name := called(node)) in CONNECTING:
                found.append(f"{path}:{getattr(node, 'lineno', 0)}: calls {name}")
            if name in LOOKING_UP and not fits(path, MAY_LOOK_UP):
                found.append(f"{path}:{getattr(node, 'lineno', 0)}: calls {name}")
            if isinstance(node, ast.Call) and _other_socket(node) and not fits(path, MAY_MAKE_SOCKETS):
                found.append(f"{path}:{node.lineno}: makes a socket")
            # A file of SQLite is connected to as well; a socket is not what that name stands for.
            method = node.func if isinstance(node, ast.Call) else None
            on_socket = isinstance(method, ast.Attribute) and getattr(method.value, "id", "") != "sqlite3"
            if isinstance(method, ast.Attribute) and method.attr == "connect" and on_socket:
                found.append(f"{path}:{method.lineno}: calls connect")
    return found


def _other_socket(made: ast.Call) -> bool:
    """Whether it makes a socket of another family than Unix. `home.socket(…)` is a path."""
    family = ast.unparse(made.args[0]) if made.args else ""
    return ast.unparse(made.func) in ("socket", "socket.socket") and family != "socket.AF_UNIX"


def elsewhere(sources: Tree) -> list[str]:
    """Addresses that are no Unix sockets, given to the router's own way to connect by what is not an upstream."""
    found = []
    for path, source in sources.items():
        if fits(path, ("router/upstream/", "router/door/")) or fits(path, MAY_NAME_ADDRESSES):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Address.parse":
                text = ast.unparse(node.args[0]) if node.args else ""
                if not re.match(r"f?['\"]unix:", text):
                    found.append(f"{path}:{node.lineno}: {text} is no Unix socket")
    return found


def impure(sources: Tree) -> list[str]:
    found = []
    for path, source in sources.items():
        parsed = ast.parse(source)
        said = re.search(r"\bpure\b", ast.get_docstring(parsed) or "", re.IGNORECASE)
        if not (fits(path, PURE) or said):
            continue
        for name, line in imports(source):
            if name not in PURE_IMPORTS and not within(name, ("router", "serving", "stdnum")):
                found.append(f"{path}:{line}: imports {name}")
        for node in ast.walk(parsed):
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith | ast.Global):
                found.append(f"{path}:{node.lineno}: {type(node).__name__}")
            if called(node) in IMPURE_CALLS:
                found.append(f"{path}:{getattr(node, 'lineno', 0)}: calls {called(node)}")
    return found


def test_imports_are_those_of_the_table() -> None:
    assert wrong_imports(tree()) == []


def test_servings_page_draws_the_arrows_of_the_table() -> None:
    page = (ROOT / "serving" / "README.md").read_text()
    drawn = dict(re.findall(r"^(\w+\.py) .*← (.*)$", page, re.MULTILINE))
    for file, arrows in MAY_IMPORT.items():
        if file.startswith("serving/") and file != "serving/__main__.py":
            modules = sorted(arrow.removeprefix("serving.") for arrow in arrows)
            assert drawn[file.removeprefix("serving/")] == (", ".join(modules) or "nothing"), file


def test_every_entry_of_the_tables_is_there() -> None:
    """A file that was moved must not leave its permissions behind for the next one of that name."""
    tables: tuple[Mapping[str, object] | tuple[str, ...], ...] = (
        MAY_IMPORT, MAY_CONNECT, MAY_LOOK_UP, MAY_NAME_ADDRESSES, MAY_FETCH, MAY_PARSE, PURE,
    )  # fmt: skip
    assert [path for table in tables for path in table if not (ROOT / path).exists()] == []


def test_nothing_is_imported_upwards_or_sideways() -> None:
    assert upward_imports(tree()) == []


def test_no_imports_in_circles() -> None:
    assert cycles(tree()) == []


def test_connections_are_made_where_the_table_says_only() -> None:
    assert way_out(tree()) == []


def test_what_is_no_upstream_is_asked_by_a_unix_socket() -> None:
    assert elsewhere(tree()) == []


def test_pure_modules_are_pure() -> None:
    assert impure(tree()) == []


IMPORTER = r"""
import importlib, logging, os, signal, sys, threading
sys.dont_write_bytecode = True
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
ACTS = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.kill", "os.mkdir",
        "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate",
        "os.putenv", "os.unsetenv", "shutil.", "tempfile.", "sqlite3.", "_thread.start", "urllib.", "http.",
        "ctypes.dlopen", "builtins.input", "fcntl.", "signal.")
armed, seen = False, []
def hook(event, args):
    if armed and (event.startswith(ACTS) or (event == "open" and isinstance(args[2], int) and args[2] & WRITES)):
        seen.append(f"{event} {args!r}"[:200])
sys.addaudithook(hook)
# Before Python 3.12 a new thread is no audit event.
threading._start_new_thread = lambda *given, **more: seen.append("a thread") or 0
threading.Event.wait = lambda *given: True
outside, ours = sys.argv[1].split(","), sys.argv[2].split(",")
for name in outside:  # what other packages do when they are imported is their business
    importlib.import_module(name)
before = dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), list(sys.path)
for name in ours:
    if pid := os.fork():
        if os.waitpid(pid, 0)[1]:
            print(name, flush=True)
        continue
    armed = True
    importlib.import_module(name)
    armed = False
    after = dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), list(sys.path)
    if after != before:
        seen.append("environment, signal handlers or sys.path")
    if logging.getLogger().handlers:
        seen.append("logging")
    if seen:
        print(name, *seen, sep=": ", flush=True)
    os._exit(0)
"""


def acting_imports(root: Path, modules: list[str], outside: list[str]) -> list[str]:
    """Modules that do something when they are imported, each in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", IMPORTER, ",".join(outside), ",".join(modules)]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.long
def test_importing_does_nothing() -> None:
    sources = tree()
    # Only what is imported at the top of a file; the rest belongs to the engine's own Python.
    top = {
        name
        for source in sources.values()
        for node in ast.parse(source).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name, _ in imports(ast.unparse(node))
        if name.split(".")[0] not in ("serving", "router")
    }
    assert acting_imports(ROOT, sorted(modules_of(sources)), sorted(top)) == []


BROKEN: tuple[tuple[Check, str, str], ...] = (
    (wrong_imports, "serving/scrape.py", "from serving import gpus"),
    (wrong_imports, "serving/newcomer.py", ""),
    (wrong_imports, "router/scanner/reading.py", "from router.errors import BadRequest"),
    (wrong_imports, "router/scanner/reading.py", "def f():\n    import router.door.book"),
    (wrong_imports, "router/door/app.py", "from router import upstream"),
    (wrong_imports, "router/decision/decide.py", "from serving.home import Home"),
    (wrong_imports, "router/ledger/__init__.py", "from router.ledger.store import Store"),
    (upward_imports, "serving/probe.py", "import router.errors"),
    (upward_imports, "router/ledger/keys.py", "from router.upstream.fleet import Fleet"),
    (cycles, "router/a.py", "from router import a"),
    (way_out, "router/commands/talk.py", "import urllib.request"),
    (way_out, "router/upstream/fleet.py", "from aiohttp import ClientSession"),
    (way_out, "router/app.py", "import socket\nsocket.socket().connect(('x', 1))"),
    (way_out, "serving/weights.py", "import requests"),
    (way_out, "serving/engines.py", "import huggingface_hub"),
    (way_out, "serving/status.py", "async def f(loop):\n    await loop.create_unix_connection(None, 'x')"),
    (way_out, "router/ledger/store.py", "import socket\nsocket.getaddrinfo('x', 1)"),
    (way_out, "router/api/admin.py", "import socket\nsocket.socket()"),
    (way_out, "router/api/admin.py", "import socket\nsocket.socket(socket.AF_INET)"),
    (way_out, "router/api/admin.py", "from socket import socket\nsocket()"),
    (way_out, "router/scanner/reading.py", "async def f(loop):\n    await loop.create_connection(None, 'x', 1)"),
    (elsewhere, "router/commands/look.py", "Address.parse('http://127.0.0.1:1')"),
    (elsewhere, "router/app.py", "Address.parse(url)"),
    (impure, "router/permit.py", "import time"),
    (impure, "router/decision/decide.py", "import datetime as dt\nx = dt.datetime.now()"),
    (impure, "router/scanner/reading.py", "async def f(): ..."),
    (impure, "serving/placement.py", "open('x')"),
    (impure, "router/ledger/newcomer.py", '"""Prices. Pure."""\nimport logging'),
)


@pytest.mark.parametrize(("check", "path", "source"), BROKEN)
def test_each_check_can_fail(check: Check, path: str, source: str) -> None:
    assert check({path: source}), f"{check.__name__} did not see it"


@pytest.mark.parametrize(
    "source",
    ["open('left', 'w')", "import socket; socket.socket()", "import subprocess; subprocess.run(['true'])",
     "import threading; threading.Thread(target=int).start()", "import os; os.environ['X'] = '1'",
     "import logging; logging.basicConfig()", "import sys; sys.path.append('x')", "raise OSError"],
)  # fmt: skip
def test_an_import_that_acts_is_seen(source: str, tmp_path: Path) -> None:
    (tmp_path / "acting.py").write_text(source)
    assert acting_imports(tmp_path, ["acting"], ["logging", "socket", "subprocess", "threading"])
