"""Data files that come with the room and that a user may replace by files of their own."""

from catena.adapters.drivers.shipped.reading import read_base_profiles, read_profiles, read_workflows

__all__ = ["read_base_profiles", "read_profiles", "read_workflows"]
