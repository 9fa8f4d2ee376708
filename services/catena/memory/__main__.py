"""`python -m catena.memory`: the room as a process of its own."""

from catena.kit.room import main
from catena.memory.app import open_memory
from catena.memory.config import MemoryConfig

if __name__ == "__main__":
    main("memory", MemoryConfig, open_memory)
