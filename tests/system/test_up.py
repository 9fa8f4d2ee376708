"""`make up` as it is typed: the command line of the Makefile itself, over homes of the test's own."""

import json
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
def typed(home: Path, log: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """`make up` over `home`, with three models that cannot be called; it prints into `log`; killed in the end."""
    models = [{"name": name, "path": str(ROOT / "demo" / "models" / name)} for name in ("demo-small", "demo-large")]
    models += [{"name": "nope", "path": str(home / "nope")}, {"name": "hubby", "path": "org/hub-id"}]
    models += [{"name": "gpt", "provider": "openai", "api_key_env": "NO_SUCH_KEY"}]
    settings = {"HOME": str(home), "GATEWAY__PORT": "0", "MODELS": json.dumps(models), **more}
    env = {**os.environ, "COLUMNS": "200", **{f"CATENA__{name}": value for name, value in settings.items()}}
    with log.open("wb") as output:
        process = subprocess.Popen(makes_command(), cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def printed(home: Path, log: Path, **more: str) -> str:
    """What `make up` printed before it gave up."""
    with typed(home, log, **more) as process:
        assert process.wait(START_S) == 1
    return log.read_text()


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
        told = wait_for("Ctrl-C stops it", log, first)
        assert WELCOME in told
        assert f"nope  base nope: no folder at {home / 'nope'}; correct its path" in told
        assert "hubby  base hubby: no folder at org/hub-id; correct its path, or set adapters.hub" in told
        assert "gpt  gpt needs a key and NO_SUCH_KEY is not set; set it and start again" in told
        assert "demo-" not in told
        url = (home / "run" / "gateway.json").read_text().split('"')[3]
        refused = printed(home, tmp_path / "second.log")
        assert f"already_running a platform already runs in {home} at {url}; " in refused
        assert healthy(home)
    with typed(home, log) as third:
        wait_for(WELCOME, log, third)
        assert healthy(home)
        third.send_signal(signal.SIGINT)
        assert third.wait(60) == 0


def test_make_up_gives_up_and_says_once_why_a_room_cannot_start(tmp_path: Path) -> None:
    home = tmp_path / "home"
    told = printed(home, tmp_path / "up.log", EXECUTOR__VERIFIERS="[bogus]").strip().splitlines()
    assert told[-2:] == [
        "child_not_ready allinone ended before it was ready, 3 times, last with exit code 1: "
        "allinone: unknown verifier 'bogus'; use some of schema, refusal",
        f"its log: {home / 'run' / 'allinone.log'}",
    ]
    assert "Traceback" not in " ".join(told)
    assert "child ended" not in " ".join(told)
