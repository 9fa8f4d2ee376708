"""The base models of this installation, read without torch: digest, shapes, and how long rows are in their tokens."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from catena.artifacts.base import BaseRules, CheckedBase, check_base
from catena.artifacts.tensors import ITEM_BYTES
from catena.kit.config import House
from catena.kit.errors import Missing
from catena.trainer.core.estimate import BaseFacts
from catena.trainer.core.rows import Row
from catena.trainer.core.spec import Training

SAMPLE_ROWS = 512
TEMPLATE_TOKENS = 4
"""About what a chat template adds per turn."""
BYTES_PER_TOKEN = 3.5
RULES = BaseRules(check_values=False)


class _Config(msgspec.Struct, frozen=True):
    """What of a base's config.json the estimate needs."""

    hidden_size: int = 0
    num_hidden_layers: int = 0
    vocab_size: int = 0


@dataclass(frozen=True, slots=True)
class _Known:
    stamp: tuple[tuple[str, int, int], ...]
    facts: BaseFacts


class FolderBases:
    """`core.ports.Bases` over the configured models that have a folder here."""

    def __init__(self, house: House) -> None:
        """Remember the folders; nothing is read yet."""
        self._folders = {model.name: model.path for model in house.models if model.path and model.provider == "local"}
        self._known: dict[str, _Known] = {}

    async def facts(self, name: str) -> BaseFacts:
        """What the base's files say; checked, hashed and kept until a file changes."""
        if name not in self._folders:
            known = ", ".join(self._folders) or "none"
            raise Missing(f"no base {name!r} with a folder here; configured: {known}", code="unknown_model")
        return await asyncio.to_thread(self._read, name, Path(self._folders[name]))

    async def lengths(self, base: BaseFacts, rows: Sequence[Row], training: Training) -> list[int]:
        """Tokens of each row, of a sample when there are many; none longer than the order allows."""
        few = rows[:: math.ceil(len(rows) / SAMPLE_ROWS)] if rows else rows
        return await asyncio.to_thread(_lengths, Path(base.folder), few, training.max_tokens)

    def _read(self, name: str, folder: Path) -> BaseFacts:
        if not folder.is_dir():
            raise Missing(f"base {name!r} should be at {folder}, where no folder is; see models in the configuration")
        stamp = tuple(sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir()))
        known = self._known.get(name)
        if known is None or known.stamp != stamp:
            known = self._known[name] = _Known(stamp, _facts(name, check_base(folder, rules=RULES)))
        return known.facts


def _facts(name: str, base: CheckedBase) -> BaseFacts:
    config = msgspec.json.decode((base.folder / "config.json").read_bytes(), type=_Config)
    item_bytes = max(ITEM_BYTES[dtype] for dtype in base.dtypes)
    return BaseFacts(
        name=name,
        folder=str(base.folder.resolve()),
        digest=base.digest,
        architecture=base.architecture,
        parameters=round(base.bytes / item_bytes),
        item_bytes=item_bytes,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        shape=base.shape,
    )


def _lengths(folder: Path, rows: Sequence[Row], most: int) -> list[int]:
    texts = ["".join(turn.content for turn in row.turns) for row in rows]
    extra = [TEMPLATE_TOKENS * len(row.turns) for row in rows]
    counts = _counts(folder, texts)
    return [min(most, count + more) for count, more in zip(counts, extra, strict=True)]


def _counts(folder: Path, texts: list[str]) -> list[int]:
    path = folder / "tokenizer.json"
    if not path.exists():
        return [math.ceil(len(text.encode()) / BYTES_PER_TOKEN) for text in texts]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
