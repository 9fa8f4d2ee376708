"""Runs the adapters as a process of their own: `python -m catena.adapters --config FILE`."""

from catena.adapters.app import open_adapters
from catena.adapters.config import AdaptersConfig
from catena.kit.room import main

if __name__ == "__main__":
    main("adapters", AdaptersConfig, open_adapters)
