"""Engines of others behind the port `Engine`: vLLM and TGI over their HTTP APIs, for fleets of GPUs."""

from catena.adapters.drivers.remote.opening import RemoteEngine, open_remote

__all__ = ["RemoteEngine", "open_remote"]
