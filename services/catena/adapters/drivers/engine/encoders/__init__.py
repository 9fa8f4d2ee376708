"""Models that do not generate: transformers' encoders, and plug-ins that read feature vectors."""

from catena.adapters.drivers.engine.encoders.reading import read_encoder
from catena.adapters.drivers.engine.encoders.transformer import prepare
from catena.adapters.drivers.engine.encoders.turns import Turns

__all__ = ["Turns", "prepare", "read_encoder"]
