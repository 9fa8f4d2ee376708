"""What every provider over HTTP shares: the pool of connections, keys, server-sent events, and what errors mean."""

from catena.executor.drivers.http.door import Door, open_session, server_of, whole_body
from catena.executor.drivers.http.sse import events_of, read_json

__all__ = ["Door", "events_of", "open_session", "read_json", "server_of", "whole_body"]
