"""The whole platform for tests: real processes over a home of its own, stopped for certain."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from catena.kit.config import Section, load
from catena.sdk.up import Platform, platform
from demo.__main__ import CONFIG
from demo.loop import retention_rows


@asynccontextmanager
async def running_platform(
    home: Path, *, split: bool = False, sql: str = "", more: Mapping[str, str] | None = None
) -> AsyncIterator[Platform]:
    """The demo's platform in `home`, in one process or split, on SQLite or the PostgreSQL at `sql`, with `more` set."""
    home.mkdir(parents=True, exist_ok=True)
    retention = home / "retention.jsonl"
    retention_rows(retention)
    settings = {
        "CATENA__HOME": str(home),
        "CATENA__GATEWAY__PORT": "0",
        "CATENA__LEARNER__RETENTION_PATH": str(retention),
        "CATENA__TELEMETRY__LEVEL": "warning",
        **({"CATENA__SQL__URL": sql} if sql else {}),
        **(more or {}),
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        house, _ = load(CONFIG, "", Section)
        async with platform(house, CONFIG, split=split) as running:
            yield running
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
