"""What tests need of the platform's parts: real servers that start fast and stop for certain, and patience.

Used by tests only; nothing in Catena imports it at run time.
"""

from catena.kit.testing.bus import MemoryBus
from catena.kit.testing.servers import NatsServer, free_port, nats_process, nats_server, postgres, sqlite_url
from catena.kit.testing.tasks import eventually, running

__all__ = [
    "MemoryBus",
    "NatsServer",
    "eventually",
    "free_port",
    "nats_process",
    "nats_server",
    "postgres",
    "running",
    "sqlite_url",
]
