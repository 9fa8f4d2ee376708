"""Calling another room: a gRPC channel that carries caller, deadline and trace, and raises error kinds."""

from catena.kit.caller import Caller, as_caller, deadline_s, unhurried, within
from catena.kit.dial.channel import dial

__all__ = ["Caller", "as_caller", "deadline_s", "dial", "unhurried", "within"]
