"""Where Headgate keeps its state: folders, sockets, secrets and the installation's id.

Shared by serving/ and router/, since both must find the same sockets. Knows nothing of what is kept there.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

# A Unix socket's path must fit sockaddr_un.sun_path: 108 bytes on Linux, 104 on macOS, one of them the NUL.
SOCKET_PATH_LIMIT = 100


@dataclass(frozen=True, slots=True)
class Home:
    """The state folder of one installation, and the names of what lies in it."""

    root: Path
    engines: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def book(self) -> Path:
        return self.root / "door" / "book.jsonl"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def models(self) -> Path:
        """Models built here (the demo model); weights from a hub stay in the hub's own cache."""
        return self.root / "models"

    @property
    def run(self) -> Path:
        """Files that are only true while something runs: state of processes."""
        return self.root / "run"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    def make(self) -> None:
        """Create the folders, readable by the owner alone."""
        for folder in (self.root, self.logs, self.models, self.run, self.secrets, self.book.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def installation(self) -> str:
        """The id that every process of this installation carries in `HEADGATE_INSTALLATION`: 16 hex digits.

        Made of a secret and of where the folder really lies, so that a copy of the folder is another installation: its
        `down` must not end what runs for this one.
        """
        key, place = self.secret("installation").encode(), os.fsencode(self.root.resolve())
        return hmac.new(key, place, hashlib.sha256).hexdigest()[:16]

    def secret(self, name: str, size: int = 32) -> str:
        """Read the secret `name` (hex text), making it from `size` random bytes when it is not there yet.

        Raises OSError where it cannot be read or is empty.
        """
        path = self.secrets / name
        if path.exists():
            return _read(path)
        self.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Written beside and linked into place, so that two processes that start together agree on one value.
        draft = path.with_name(f".{name}.{os.getpid()}.{secrets.token_hex(4)}")
        draft.touch(mode=0o600)
        with draft.open("w") as file:
            file.write(secrets.token_hex(size))
            # A power cut must not leave a name without its content.
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return _read(path)

    def socket(self, name: str) -> Path:
        """The Unix socket called `name`; in a short private folder where the state folder's path is too long."""
        path = self.run / f"{name}.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
            return path
        short = f"headgate-{self.installation()}"
        folders = [Path(tempfile.gettempdir()) / short, Path("/tmp") / short]  # noqa: S108 (made private below)
        folder = next((f for f in folders if len(os.fsencode(f / f"{name}.sock")) <= SOCKET_PATH_LIMIT), folders[-1])
        folder.mkdir(mode=0o700, exist_ok=True)
        # Not stat: a link that someone else put there must not count as ours.
        found = folder.lstat()
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise PermissionError(f"{folder} belongs to someone else or is open to others; remove it and start again")
        return folder / f"{name}.sock"


def find_home(environ: dict[str, str] | None = None) -> Home:
    """Resolve the state folder: $HEADGATE_HOME, else the user's data folder by the XDG base directory rules."""
    env = os.environ if environ is None else environ
    if given := env.get("HEADGATE_HOME"):
        root = Path(given).expanduser().absolute()
    else:
        data = env.get("XDG_DATA_HOME") or ""
        # The XDG rules: a relative value is invalid and is ignored.
        base = Path(data) if data.startswith("/") else Path("~/.local/share").expanduser()
        root = base / "headgate"
    engines = env.get("HEADGATE_ENGINES")
    return Home(root, Path(engines).expanduser().absolute() if engines else root / "engines")


def _read(path: Path) -> str:
    text = path.read_text().strip()
    if not text:
        # An empty key would seal anything for anyone.
        raise OSError(f"{path} is empty; remove it and start again")
    return text


def listen_privately(path: Path) -> socket.socket:
    """A listening Unix socket at `path` that only this user may open; what a killed process left there is replaced.

    Raises OSError.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Under the umask the socket has its mode from the first moment on, not only after a chmod.
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(128)
    return listener
