"""Messages to the core's types and back."""

from catena.executor.handlers.service import ExecutorHandlers

__all__ = ["ExecutorHandlers"]
