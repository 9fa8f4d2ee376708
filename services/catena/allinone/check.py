"""What `catena up` asks before it starts anything: whether every room could read its part of the configuration.

A program of its own, because only this package may know every room; it imports no more of them than their `config`.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from catena.adapters.config import AdaptersConfig
from catena.embed.folder import read_card
from catena.executor.config import ExecutorConfig
from catena.features.config import FeaturesConfig
from catena.gateway.config import GatewayConfig
from catena.kit.config import Section, load
from catena.kit.errors import CatenaError
from catena.learner.config import LearnerConfig
from catena.memory.config import MemoryConfig
from catena.plan.build import read_shapes
from catena.router.config import RouterConfig
from catena.trainer.config import TrainerConfig

SECTIONS: dict[str, type[Section]] = {
    "gateway": GatewayConfig,
    "router": RouterConfig,
    "executor": ExecutorConfig,
    "adapters": AdaptersConfig,
    "trainer": TrainerConfig,
    "memory": MemoryConfig,
    "features": FeaturesConfig,
    "learner": LearnerConfig,
}


def complaints(config: Path | None) -> Iterator[str]:
    """What is wrong with each section, with the shapes, and with the embedding model that rooms share.

    Raises Invalid where the house itself cannot be read.
    """
    house, _ = load(config, "", Section)
    checks: list[Callable[[], object]] = [partial(load, config, room, kind) for room, kind in SECTIONS.items()]
    checks += [partial(read_shapes, house.pipelines), partial(read_card, house.embedding_folder())]
    for check in checks:
        try:
            check()
        except CatenaError as error:
            yield error.message


def main() -> None:
    """End with code 1 and a line for each complaint when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m catena.allinone.check", description="Check a configuration.")
    parser.add_argument("--config", type=Path, help="configuration file (default: all defaults)")
    try:
        sys.exit("\n".join(complaints(parser.parse_args().config)) or 0)
    except CatenaError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
