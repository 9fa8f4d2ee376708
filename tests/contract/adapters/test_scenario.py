"""Everything at once through the engine's own loop: each logit that it draws from is held against PEFT, one by one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from catena.adapters.core.work import Weights
from catena.adapters.drivers.engine.adapter_weights import read_adapter
from catena.adapters.drivers.engine.batch import Batch
from catena.adapters.drivers.engine.frames import Finished, Settings
from catena.adapters.drivers.engine.rows import Draft, Row
from tests.contract.adapters.making import make_adapter, make_base, part_of, peft_logits
from tests.contract.adapters.test_engine_loop import Bench

TEXT = "the quick brown fox jumps over a lazy dog, the quick brown fox"
RANKED = {f"r{rank}": rank for rank in (1, 2, 4, 8, 16, 32, 64)}
TOLERANCE = 1e-4


class Watched(Batch):
    """A batch that keeps the logits that each answer was drawn from, with the tokens that led to them."""

    seen: list[tuple[Row, tuple[int, ...], Tensor]]
    put_back: int = 0

    def _draw(self, logits_WV: Tensor, spans: Sequence[tuple[Row | Draft, int, int]]) -> list[Row]:
        for row, begin, end in spans:
            if isinstance(row, Row):
                text = [*row.tokens, *row.proposal]
                for place in range(begin, end):
                    self.seen.append((row, tuple(text[: row.cached - (end - place) + 1]), logits_WV[place].clone()))
        return super()._draw(logits_WV, spans)

    def _put_back(self, row: Row | Draft) -> None:
        self.put_back += 1
        super()._put_back(row)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("scenario")
    base = make_base(root / "base")
    kinds: dict[str, dict[str, Any]] = {name: {"r": rank, "use_rslora": rank > 16} for name, rank in RANKED.items()}
    kinds |= {"dora": {"r": 8, "use_dora": True}, "r4-new": {"r": 4}}
    kinds |= {name: {"r": 8, "alora_invocation_tokens": list(b"[do]")} for name in ("act-x", "act-y")}
    made = {
        name: make_adapter(base, root / name, seed=seed, **config) for seed, (name, config) in enumerate(kinds.items())
    }
    return {"base": base, "draft": make_base(root / "draft", width=32, layers=1, seed=9)} | made


class Scene(Bench):
    """A loop of little room that does all it can to be fast, and whom each of its calls asked."""

    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__(folders, Settings(socket="", coalesce_s=0.0, lookup_tokens=4))
        self.folders = folders
        self.held = self.loop.bases["base"]
        # Room for a row of full length and what is remembered of as many tokens: long answers put others back.
        room = 256 * self.held.decoder.shape.kv_bytes_per_token
        self.batch = Watched(self.held.decoder, kv_bytes=room, max_rows=6, prefill_tokens=24, prefix_bytes=room)
        self.batch.seen = []
        self.held.batch = self.batch
        self.asked: list[str] = []

    def ask(self, adapter: str, text: str, **more: Any) -> int:
        self.asked.append(adapter)
        self.submit(len(self.asked) - 1, adapter, text=text, **{"max_tokens": 24} | more)
        return len(self.asked) - 1

    def run_until_told(self, call: int) -> None:
        while not any(isinstance(told, Finished) and told.call == call for told in self.told):
            for name, each in self.loop.bases.items():
                if each.batch.busy:
                    self.loop._step(name, each)

    def reload(self, adapter: str) -> int:
        """Evict, and load again while others run; the bytes that were freed."""
        freed = self.loop.forget(Weights(base="base", adapter=adapter))
        part = part_of(self.folders["base"], self.folders[adapter])
        self.held.adapters[adapter] = read_adapter(adapter, [part], self.held.decoder)
        return freed

    def words(self, call: int) -> tuple[str, ...]:
        return tuple(token for token, _ in self.answer(call))


def test_every_logit_equals_pefts_through_all_that_makes_the_engine_fast(folders: dict[str, Path]) -> None:
    scene = Scene(folders)
    first = {adapter: scene.ask(adapter, f"{TEXT} {adapter}") for adapter in ("", *RANKED, "dora")}
    for number, adapter in enumerate(("act-x", "", "act-y", "act-x")):
        scene.ask(adapter, f"{TEXT}[do]", max_tokens=16 + number)
    scene.ask("r1", TEXT, draft="base", max_tokens=40)
    scene.ask("", f"{TEXT} again", draft="draft", max_tokens=30)
    scene.ask("r64", "ab ab ab ab", max_tokens=120)
    gone = scene.ask("r32", f"{TEXT} never to be told", max_tokens=90)
    scene.run_until_told(first["r4"])
    scene.loop.cancel(gone)
    freed = scene.reload("r4")
    again, other = (scene.ask(adapter, f"{TEXT} r4") for adapter in ("r4", "r4-new"))
    scene.drain()
    copied = scene.ask("", "ab ab ab", max_tokens=180)
    scene.drain()

    compared = check_against_peft(scene)

    ended = [scene.done(call) for call in range(len(scene.asked)) if call != gone]
    assert compared >= sum(done.output_tokens for done in ended)
    # All of it did happen.
    assert freed == scene.held.adapters["r4"].bytes > 0
    assert scene.words(first["r4"]) == scene.words(again) != scene.words(other)
    assert scene.batch.put_back > 0
    assert sum(done.cached_tokens > 0 for done in ended) >= 3
    assert 0 < sum(done.accepted for done in ended) < sum(done.drafted for done in ended)
    assert scene.done(copied).accepted > 0


def check_against_peft(scene: Scene) -> int:
    """Hold what every answer was drawn from against PEFT alone on its text; how many places that were."""
    rows = {row.generation.call: row for row, _, _ in scene.batch.seen}
    compared = 0
    for call, row in rows.items():
        adapter, text = scene.asked[call], tuple(row.tokens)
        wanted_TV = peft_logits(scene.folders["base"], scene.folders[adapter] if adapter else None, row.tokens)
        for other, prefix, got_V in scene.batch.seen:
            # What was proposed and then rejected led nowhere.
            if other is row and text[: len(prefix)] == prefix:
                compared += 1
                assert (got_V - wanted_TV[len(prefix) - 1]).abs().max() <= TOLERANCE * wanted_TV.abs().max(), call
    return compared
