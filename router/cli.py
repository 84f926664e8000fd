"""The `headgate` command: every subcommand by name. Each is a function in commands/; here they are only joined."""

from __future__ import annotations

import errno
import signal
import sys
from typing import NoReturn

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the rest is read ends it, without a traceback

import typer

from router.commands import audit, check, costs, door, keys, look, planning, privacy, run, site, status, talk
from router.commands.context import Stop
from router.keeper import AlreadyRunning
from router.ledger.store import LedgerError
from serving.catalogue import ConfigError
from serving.engines import EngineError

MENDS = {
    errno.ENOSPC: "free some space there",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR), "set HEADGATE_HOME to a folder of yours"),
}
"""What helps where the operating system says no."""


def build() -> typer.Typer:
    """The command line."""
    app = typer.Typer(
        name="headgate", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
        help="One private OpenAI-compatible endpoint over local vLLM and hosted models.\n\nStart with: headgate up",
    )  # fmt: skip
    looking = (look.explain, costs.costs, planning.plan, look.doctor)
    for command in (run.up, run.down, status.status, status.logs, talk.chat, *looking):
        app.command()(command)
    app.add_typer(keys.app, name="keys")
    app.add_typer(privacy.app, name="privacy")
    app.add_typer(door.app, name="door")
    app.add_typer(audit.app, name="audit")
    app.add_typer(site.providers, name="providers")
    app.add_typer(site.models, name="models")
    app.add_typer(site.config_app, name="config")
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(check.test)
    return app


def main() -> None:
    """Run the command line. What is wrong is one sentence on stderr and exit code 1, or a command's own."""
    try:
        app = build()
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on a command ends in its own way
        app(prog_name="headgate")
    except (Stop, ConfigError, LedgerError, EngineError, AlreadyRunning) as wrong:
        _end(str(wrong), wrong.code if isinstance(wrong, Stop) else 1)
    except OSError as wrong:
        mend = MENDS.get(wrong.errno or 0, "see: headgate doctor")
        _end(f"{wrong.filename or 'the system'}: {wrong.strerror or wrong}; {mend}")


def _end(sentence: str, code: int = 1) -> NoReturn:
    print(f"headgate: {sentence}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
