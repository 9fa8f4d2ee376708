"""The script that measures on a GPU, on a CPU: that it runs, holds to PEFT, and needs no more than it says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NEEDS = """
import sys
import torch, transformers, peft

def roots():
    return {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)

known = roots()
import benchmarks.adapters.cuda
print(*sorted(roots() - known))
"""


def run(*arguments: str) -> str:
    path = ":".join(str(ROOT / folder) for folder in ("", "libs", "services"))
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_needs_no_more_than_it_says() -> None:
    assert set(run("-c", NEEDS).split()) == {"benchmarks", "catena", "msgspec"}


def test_it_holds_to_peft_and_compares_all_sides() -> None:
    said = run("-m", "benchmarks.adapters.cuda", "--device", "cpu", "--size", "tiny", "--rounds", "1", "--write", "8")

    assert "NOT HELD" not in said
    for what in ("8 adapters / base", "32 adapters / base", "32 adapters / PEFT adapter", "32 adapters / PEFT one"):
        assert what in said
