"""No child outlives its parent, not even one whose parent was killed by SIGKILL.

The parent (`supervise`) holds the writing end of a pipe and its child the reading end, whose number is in
CATENA_PARENT_FD. When the parent ends, by whatever cause, the kernel closes the pipe and the child ends itself.
Own programs call `exit_with_parent` first thing; foreign ones run as `python -m catena.kit.leash -- command ...`.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

PARENT_FD = "CATENA_PARENT_FD"
GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def exit_with_parent(grace_s: float = GRACE_S) -> None:
    """End this process when the one that started it ends: SIGTERM, and `grace_s` later at once.

    Does nothing in a process that no supervisor started. Grandchildren do not inherit the pipe.
    """

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(grace_s)
        os._exit(1)

    if _watch_parent(end):
        # The kernel's own signal also reaches a process whose interpreter is held by foreign code.
        die_with_parent(signal.SIGTERM)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the kernel (Linux) to send this process signal `number` when its parent thread ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def _watch_parent(end: Callable[[], None]) -> bool:
    """Call `end` from a daemon thread once the parent's pipe closes; False without such a pipe."""
    number = os.environ.pop(PARENT_FD, "")  # noqa: TID251 - handed down by the supervisor, no configuration
    if not number:
        return False
    pipe = int(number)
    os.set_inheritable(pipe, False)

    def wait() -> None:
        while os.read(pipe, 1):
            pass
        end()

    threading.Thread(target=wait, name="parent", daemon=True).start()
    return True


def run(command: Sequence[str], grace_s: float = GRACE_S) -> int:
    """Run a foreign `command` on the leash, signals passed on; its exit code, 128 + n when signal n ended it."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def before() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    child = subprocess.Popen(command, preexec_fn=before)  # safe: no thread runs yet
    for waiting in early:
        child.send_signal(waiting)
    _watch_parent(lambda: _stop(child, grace_s))
    code = child.wait()
    return code if code >= 0 else 128 - code


def _stop(child: "subprocess.Popen[bytes]", grace_s: float) -> None:
    child.terminate()
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()


def main(arguments: Sequence[str]) -> int:
    """`-- command ...`: run the command on the leash."""
    if len(arguments) < 2 or arguments[0] != "--":
        sys.stderr.write("usage: python -m catena.kit.leash -- command [argument ...]\n")
        return 2
    return run(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
