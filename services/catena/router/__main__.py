"""`python -m catena.router`: the room as a process of its own."""

from catena.kit.room import main
from catena.router.app import open_router
from catena.router.config import RouterConfig

if __name__ == "__main__":
    main("router", RouterConfig, open_router)
