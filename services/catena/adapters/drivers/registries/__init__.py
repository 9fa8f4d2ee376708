"""Remote registries of adapters: published folders, near or on a web server, and repositories of a model hub."""

from catena.adapters.drivers.registries.opening import open_sources

__all__ = ["open_sources"]
