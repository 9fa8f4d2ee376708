from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".catena-cache" / "minilm-int8"


@pytest.fixture(scope="session")
def minilm():
    """The default model's folder, exported on first use (10 s) and kept under the git-ignored cache."""
    from catena.embed.export import ensure_exported

    return ensure_exported(CACHE)
