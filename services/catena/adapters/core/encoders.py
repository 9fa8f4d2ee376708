"""Encoders and models of feature vectors, beside the bases that generate: same gate, same loads, other questions."""

from dataclasses import dataclass

from catena.adapters.core import refs
from catena.adapters.core.bases import BaseLoads
from catena.adapters.core.encoding import Encoded, Encoding, check_encoding, check_kind
from catena.adapters.core.errors import BadModel
from catena.adapters.core.ports import Bases, Engine
from catena.kit.config import ModelType


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoders:
    """Asks local encoders; `loads` makes them resident with the first request."""

    bases: Bases
    loads: BaseLoads
    engine: Engine

    async def encode(self, asked: Encoding, *kinds: ModelType) -> tuple[Encoded, str]:
        """What a base of one of `kinds` makes of texts or rows, and `base#digest` that did.

        Raises Invalid for a bad question (`context_length_exceeded`, `bad_features`), WrongKind, BadModel for adapters,
        UnknownModel, the gate's refusals, and Exhausted (`queue_full`).
        """
        check_encoding(asked)
        ref = refs.parse(asked.base)
        if ref.adapters or ref.auto:
            raise BadModel(f"{asked.base!r}: encoders take no adapters; name {ref.base!r} alone or merge it beforehand")
        record = await self.bases.get(ref.base)
        check_kind(record.name, record.kind, *kinds)
        async with self.loads.hold(record.name):
            return await self.engine.encode(asked), f"{record.name}#{record.digest}"
