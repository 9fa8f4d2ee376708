"""Settings of the features room."""

from catena.kit.config import Section


class FeaturesConfig(Section, frozen=True):
    """Section `features`.

    `cache_s`: seconds that a value read is kept in memory, unless it is written, here or elsewhere; 0: none.
    `cache_entities`: how many entities are kept; the one read longest ago goes first. About 1 KB each.
    `definitions_s`: seconds until a definition or group that another replica changed is seen here.
    `max_value_bytes`: of one value as JSON, refused above it.
    `max_batch`: entities times features in one read.
    """

    cache_s: float = 300.0
    cache_entities: int = 50_000
    definitions_s: float = 5.0
    max_value_bytes: int = 256 * 1024
    max_batch: int = 20_000
