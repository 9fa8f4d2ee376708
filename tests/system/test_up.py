"""`make up` as it is typed: the command line of the Makefile itself, over homes of the test's own."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0
WELCOME = "Catena is up"


def makes_command() -> list[str]:
    """What `make up` runs in the end, with this environment's programs."""
    bin_folder = Path(sys.executable).parent
    asked = ["make", "--dry-run", "--no-print-directory", "up", f"BIN={bin_folder}"]
    told = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    return shlex.split(told.stdout.strip().splitlines()[-1])


@contextmanager
def typed(home: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`make up` over `home`, what it prints in `log`; killed at the end if it still runs."""
    env = {**os.environ, "CATENA__HOME": str(home), "CATENA__GATEWAY__PORT": "0", "COLUMNS": "200"}
    with log.open("wb") as output:
        process = subprocess.Popen(makes_command(), cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(text: str, log: Path, process: subprocess.Popen[bytes]) -> str:
    """What was printed, once it holds `text`."""
    deadline = monotonic() + START_S
    while text not in (told := log.read_text()):
        assert process.poll() is None, told
        assert monotonic() < deadline, told
    return told


def healthy(home: Path) -> bool:
    url = (home / "run" / "gateway.json").read_text().split('"')[3]
    with urlopen(f"{url}/healthz", timeout=30) as answer:
        return bool(answer.status == 200)


def test_make_up_stays_refuses_a_second_one_and_starts_again_right_after_a_kill(tmp_path: Path) -> None:
    home, log = tmp_path / "home", tmp_path / "first.log"
    with typed(home, log) as first:
        wait_for(WELCOME, log, first)
        url = (home / "run" / "gateway.json").read_text().split('"')[3]
        with typed(home, tmp_path / "second.log") as second:
            assert second.wait(30) == 1
        assert f"already_running a platform already runs in {home} at {url}; " in (tmp_path / "second.log").read_text()
        assert healthy(home)
    with typed(home, log) as third:
        wait_for(WELCOME, log, third)
        assert healthy(home)
        third.send_signal(signal.SIGINT)
        assert third.wait(60) == 0
