"""What every provider over HTTP shares: the pool of connections, keys, server-sent events, and what errors mean."""

from catena.executor.drivers.http.door import Door, Post, open_session, server_of, whole_body
from catena.executor.drivers.http.sse import reads_of, replies_of

__all__ = ["Door", "Post", "open_session", "reads_of", "replies_of", "server_of", "whole_body"]
