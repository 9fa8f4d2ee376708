"""A room's gRPC server: open it, know who calls and for how long, and map errors."""

from catena.kit.caller import Caller, as_caller, caller, deadline_s, unhurried, within
from catena.kit.serve.incoming import Admit, Headers
from catena.kit.serve.server import Limits, Server, open_server
from catena.kit.wire import grpc_status, http_status

__all__ = [
    "Admit",
    "Caller",
    "Headers",
    "Limits",
    "Server",
    "as_caller",
    "caller",
    "deadline_s",
    "grpc_status",
    "http_status",
    "open_server",
    "unhurried",
    "within",
]
