"""Cancelling that is heard.

On Python 3.11 `asyncio.wait_for` swallows a cancellation that arrives together with its result, and nats-py awaits
every answer that way. A loop that should end when cancelled would then go on for ever.
"""

import asyncio


def heed_cancel() -> None:
    """Raise CancelledError when the running task was asked to end, even if something below it swallowed the request."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
