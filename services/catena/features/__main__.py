"""`python -m catena.features`: the room as a process of its own."""

from catena.features.app import open_features
from catena.features.config import FeaturesConfig
from catena.kit.room import main

if __name__ == "__main__":
    main("features", FeaturesConfig, open_features)
