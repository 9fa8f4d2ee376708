"""Providers from other packages: an entry point of group `catena.providers`, named as the catalogue's `provider`.

The entry point is a function without arguments that returns an object with `generate` as `core.ports.Provider` has it;
if it has `embed` or `predict` as the ports `Embedding` and `Predictor` have it, it serves those types of models too.
"""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

import structlog

from catena.executor.core.ports import Provider

GROUP = "catena.providers"
log = structlog.get_logger()


def load_providers() -> Mapping[str, Provider]:
    """What is installed, by name. A plug-in that fails to load is logged and left out."""
    found: dict[str, Provider] = {}
    for entry in entry_points(group=GROUP):
        try:
            found[entry.name] = entry.load()()
        except Exception:  # other people's code, at start: the room opens without it
            log.exception("provider plug-in failed", provider=entry.name)
    return found


def able(providers: Mapping[str, Provider], verb: str) -> dict[str, Any]:
    """Those that have the method `verb`."""
    return {name: provider for name, provider in providers.items() if hasattr(provider, verb)}
