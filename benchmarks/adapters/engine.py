"""Our side in this process: the engine's own batch, fed as its loop feeds it, without the room around it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from time import perf_counter

import torch

from benchmarks.adapters.rows import greedy
from benchmarks.adapters.subject import Subject
from catena.adapters.core.work import Part
from catena.adapters.drivers.engine.adapter_weights import read_adapter
from catena.adapters.drivers.engine.base_weights import read_base
from catena.adapters.drivers.engine.batch import Batch
from catena.adapters.drivers.engine.lora import Adapter

KV_BYTES = 4 << 30
PREFIX_BYTES = 2 << 30
PREFILL = 512


class Engine:
    """A base with its adapters in memory."""

    def __init__(self, subject: Subject, dtype: str) -> None:
        """Read all of it, through the gate."""
        self.decoder = read_base(subject.base, dtype=dtype, device=torch.device("cpu"), kv_bytes=KV_BYTES)
        self.adapters = {name: self.read(name, subject.part(name)) for name in subject.adapters}
        self._batches: dict[tuple[int, int], Batch] = {}
        self._numbers = count()

    def read(self, name: str, part: Part) -> Adapter:
        """An adapter that passed the gate."""
        return read_adapter(name, [part], self.decoder)

    def decoded(self, prompts: Sequence[Sequence[int]], names: Sequence[str], write: int) -> float:
        """Tokens a second while all rows decode; `names` are the rows' adapters in turn, empty: the base."""
        # What was read once need not be read again where only decoding is measured.
        batch = self._batch(len(prompts), PREFIX_BYTES)
        for number, prompt in enumerate(prompts):
            batch.add(greedy(prompt, self.adapters.get(names[number % len(names)]), write))
        while batch.waiting or any(row.cached < row.prompt for row in batch.running):
            batch.step()
        before, began = batch.tokens, perf_counter()
        _drain(batch)
        return (batch.tokens - before) / (perf_counter() - began)

    def served(self, prompts: Sequence[Sequence[int]], writes: Sequence[int], rows: int, names: Sequence[str]) -> float:
        """Written tokens a second over all requests, prompts and waiting included."""
        batch = self._batch(rows, 0)
        before = batch.tokens
        for number, (prompt, write) in enumerate(zip(prompts, writes, strict=True)):
            batch.add(greedy(prompt, self.adapters.get(names[number % len(names)]), write))
        began = perf_counter()
        _drain(batch)
        return (batch.tokens - before) / (perf_counter() - began)

    def first_token(self, context: Sequence[int], suffix: Sequence[int], invocation: Sequence[int] = ()) -> float:
        """Seconds to the first token of an adapter on a context that the base has read before.

        The adapter is one that never read anything, activated by its `invocation` if there is one.
        """
        some = next(iter(self.adapters.values()))
        adapter = replace(some, key=f"new-{next(self._numbers)}", invocation=tuple(invocation))
        batch = self._batch(1, PREFIX_BYTES)
        batch.add(greedy(context, None, 1))
        _drain(batch)
        batch.add(greedy([*context, *suffix], adapter, 1))
        began = perf_counter()
        _drain(batch)
        return perf_counter() - began

    def _batch(self, rows: int, prefix_bytes: int) -> Batch:
        """An empty batch, whose memory has been written to before from the second call on."""
        if (rows, prefix_bytes) not in self._batches:
            self._batches[rows, prefix_bytes] = Batch(
                self.decoder, max_rows=rows, kv_bytes=KV_BYTES, prefill_tokens=PREFILL, prefix_bytes=prefix_bytes
            )
        return self._batches[rows, prefix_bytes]


def _drain(batch: Batch) -> None:
    while batch.busy:
        batch.step()
