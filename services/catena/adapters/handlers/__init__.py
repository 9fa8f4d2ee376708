"""The adapters' gRPC service and its metrics."""

from catena.adapters.handlers.figures import Figures
from catena.adapters.handlers.service import AdaptersHandlers

__all__ = ["AdaptersHandlers", "Figures"]
