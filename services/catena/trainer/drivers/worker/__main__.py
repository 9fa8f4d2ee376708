"""`python -m catena.trainer.drivers.worker FOLDER ATTEMPT`: carry out the order in FOLDER and tell how it goes.

Ends with the process that started it. Exit code 0: a result or a failure was told; anything else is a crash, after
which the same order may be tried again.
"""

import fcntl
import sys
from pathlib import Path

import msgspec

from catena.kit.errors import CatenaError
from catena.kit.leash import exit_with_parent
from catena.trainer.core.order import Failure, Order
from catena.trainer.drivers.worker.telling import Telling
from catena.trainer.drivers.workers import ORDER, reports_path

LOCK = "lock"


def main(folder: Path, attempt: int) -> None:
    """Train what `folder` orders, alone: a worker of an attempt before that still lives is waited for."""
    exit_with_parent()
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        order = msgspec.json.decode((folder / ORDER).read_bytes(), type=Order)
        with Telling(reports_path(folder, attempt)) as tell:
            try:
                # Only now, since importing torch takes seconds in which the leash should hold already.
                from catena.trainer.drivers.worker.job import carry_out

                tell(carry_out(order, folder, tell))
            except CatenaError as error:
                tell(Failure(code=error.code, message=error.message))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
