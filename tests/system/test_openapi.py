"""schemathesis over the OpenAPI document, against the whole platform: every check, and never a 5xx.

`CATENA_SCHEMATHESIS_PYTHON` names a python with `schemathesis`. What a schema cannot say (that a model has to exist,
that a temperature ends at 2) is refused with 400, 404 or 409, which its check of positive data is told of.
"""

import asyncio
import os
from pathlib import Path

import pytest

from tests.system.running import running_platform

PYTHON = "CATENA_SCHEMATHESIS_PYTHON"
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = [200, 202, 400, 403, 404, 409, 413, 429]

[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 409, 413, 429]

[[operations]]
include-path-regex = "/events$|/dashboard$|/v1/keys/|lora_adapter|/v1/registry/"
enabled = false
"""
"""Left out: streams that end with their run, the page, revoking the key that asks, vLLM's routes, which answer in
text, and files of a registry."""

pytestmark = [
    pytest.mark.system,
    pytest.mark.peer,
    pytest.mark.skipif(PYTHON not in os.environ, reason=f"{PYTHON} names no python with schemathesis"),
]


@pytest.mark.timeout(600)
async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    async with running_platform(tmp_path / "home") as whole:
        command = [str(Path(os.environ[PYTHON]).with_name("schemathesis")), "run", f"{whole.url}/openapi.json"]
        command += ["--header", f"Authorization: Bearer {whole.key}", "--max-examples", "8", "--seed", "7"]
        command += [
            "--phases",
            "examples,coverage,fuzzing",
            "--request-timeout",
            "100",
            "--max-response-time",
            "100",
            "--no-color",
            "--checks",
            "all",
        ]
        child = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            out, _ = await asyncio.wait_for(child.communicate(), 540)
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
    assert child.returncode == 0, out.decode()[-20000:]
